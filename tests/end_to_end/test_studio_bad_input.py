"""Bad input in a browser: runs that go, are half there or have markup in their names."""

from __future__ import annotations

import json
import shutil
from urllib.parse import quote

import pytest
from helpers.browser import Studio, watched_page
from helpers.support import run_main, write_record
from playwright.sync_api import Browser, Dialog, expect

pytestmark = pytest.mark.browser
MARKUP = "<img src=x onerror=alert(1)>"


def test_a_run_deleted_while_shown_is_said_to_be_gone(studio: Studio, browser: Browser) -> None:
    folder = studio.root / "going"
    folder.mkdir()
    write_record(folder, "stopped")
    with watched_page(browser, studio) as (page, _):
        page.get_by_role("link", name="going", exact=True).click()
        expect(page.get_by_role("region", name="standing")).to_contain_text("stopped")
        shutil.rmtree(folder)
        gone = page.get_by_text("This run was deleted or renamed while you looked at it.")
        expect(gone).to_be_visible()
        page.reload()
        expect(page.get_by_text("There is no run of this name here.")).to_be_visible()
        page.get_by_role("link", name="All runs").click()
        expect(page.get_by_role("link", name="going", exact=True)).to_have_count(0)


def test_a_half_written_run_has_a_line_and_no_crash(studio: Studio, browser: Browser) -> None:
    for name, text in {"half": '{"params": {"model', "foreign": "[1, 2]", "empty": ""}.items():
        folder = studio.root / name
        folder.mkdir()
        (folder / "run.json").write_text(text, encoding="utf-8")
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step', encoding="utf-8")
        (folder / "progress.json").write_text("{", encoding="utf-8")
        (folder / "samples.jsonl").write_text('{"prompt', encoding="utf-8")
    with watched_page(browser, studio) as (page, _):
        for name in ("half", "foreign", "empty"):
            page.goto(studio.address)
            expect(page.get_by_role("row", name=f"{name} broken")).to_be_visible()
            page.goto(f"{studio.address}/run/{name}")
            expect(page.get_by_role("region", name="standing")).to_contain_text("broken")
            page.get_by_role("button", name="Copy as").click()
            page.get_by_text("run.json", exact=True).click()
            expect(page.get_by_role("alert").last).to_be_visible()
            page.goto(f"{studio.address}/new?from={name}")
            expect(page.get_by_text("Not taken over")).to_be_visible()
        page.goto(f"{studio.address}/compare?runs=half&runs=foreign")
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_markup_in_names_and_files_stays_text(studio: Studio, browser: Browser) -> None:
    name = MARKUP.replace("/", "")
    folder = studio.root / name
    folder.mkdir()
    write_record(folder, "done")
    sample = {"prompt": MARKUP, "text": f"<b>{MARKUP}</b>", "expected": "x", "step": 1}
    event = {"time": "2026-11-29T00:00:00+00:00", "type": "sample", **sample}
    (folder / "samples.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    (folder / "log.txt").write_text(f"data: {MARKUP}\n", encoding="utf-8")
    dialogs: list[str] = []

    def keep(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    with watched_page(browser, studio) as (page, _):
        page.on("dialog", keep)
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        expect(page.get_by_role("log", name="log")).to_contain_text(MARKUP)
        expect(page.get_by_role("cell", name=f"<b>{MARKUP}</b>")).to_be_visible()
        for address in ("queue", "chat", "player", f"new?from={quote(name)}"):
            page.goto(f"{studio.address}/{address}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.locator("img[src=x]").count() == 0
    assert dialogs == []


def test_a_second_studio_on_the_root_names_the_first(studio: Studio, browser: Browser) -> None:
    second = run_main("studio", f"--run_root={studio.root}", "--no_open", "--json")
    assert (second.returncode, second.stderr) == (0, "")
    assert json.loads(second.stdout) == {"url": studio.url, "running": True}
    with watched_page(browser, studio) as (page, _):
        expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
