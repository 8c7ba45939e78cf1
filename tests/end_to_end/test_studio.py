"""Studio as it is used: from the form to the player, in one scene; every page in every size."""

from __future__ import annotations

import json
import re
from urllib.parse import quote, urlencode

import pytest
from helpers.browser import (
    SCREENS,
    WORKED_S,
    Studio,
    fits,
    milliseconds,
    press_until,
    structure_faults,
    watched_page,
)
from helpers.support import TINY_CONFIG, pairs, wait_until, write_rows
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = pytest.mark.browser
STEPS = 2500  # seconds enough to watch, stop, resume and watch again
WIDTHS = (400, 1280, 1600)
THEMES = ("light", "dark")
LOST = re.compile(r"WebSocket|ERR_CONNECTION_REFUSED|Failed to load resource")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the fields of a small run: their names among the parameters, and what is typed."""
    folder = tmp_path_factory.mktemp("inputs")
    model = folder / "config.json"
    model.write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    data = write_rows(folder / "<b>d.jsonl", [*pairs(), {"prompt": "x", "response": ""}])
    return {
        "Model configuration": str(model),
        "Dataset": str(data),
        "Maximum length": "64",
        "Steps": str(STEPS),
        "Evaluate every": str(STEPS - 1),
        "Save every": str(STEPS - 1),
    }


def test_a_run_goes_all_the_way_from_form_to_player(
    studio: Studio, browser: Browser, job: dict[str, str]
) -> None:
    with watched_page(browser, studio) as (page, watch):
        fill_by_keyboard(page, job)
        check(page)
        first = queue_by_keyboard(page, job)
        save_sample_and_stop(page)
        resume(page)
        studio.restart()
        expect(page.get_by_text("Connection lost")).to_be_visible()
        page.goto("about:blank")
        watch.errors[:] = [error for error in watch.errors if not LOST.search(error)]
        page.goto(studio.url)
        page.get_by_role("link", name=first, exact=True).click()
        expect_standing(page, "status running")
        expect_standing(page, f"status done phase – step {STEPS:,} of", seconds=WORKED_S)
        second = repeat(page)
        compare(page, studio, [first, second])
        chat(page, studio, first)
        play(page, studio, first)


def test_pages_fit_every_width_in_both_themes(studio: Studio, browser: Browser) -> None:
    faults: list[str] = []
    SCREENS.mkdir(exist_ok=True)
    with watched_page(browser, studio) as (page, _):
        runs = [path.parent.name for path in sorted(studio.root.glob("*/run.json"))]
        addresses = {
            "runs": "/",
            "form": f"/new?from={quote(runs[0])}" if runs else "/new",
            "queue": "/queue",
            "run": f"/run/{quote(runs[0])}" if runs else "/run/none",
            "compare": f"/compare?{urlencode([('runs', run) for run in runs])}",
            "chat": "/chat",
            "player": "/player",
        }
        for name, address in addresses.items():
            page.goto(studio.address + address)
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            shown = {"run": page.get_by_role("img"), "player": page.locator("iframe")}
            if runs and name in shown:
                expect(shown[name].first).to_be_visible()
            page.wait_for_load_state("networkidle")
            faults += [f"{name}: {fault}" for fault in structure_faults(page)]
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)
                for width in WIDTHS:
                    if not fits(page, width):
                        faults.append(f"{name} is wider than {width} px")
                    page.screenshot(
                        path=SCREENS / f"studio-{name}-{width}-{theme}.png", full_page=True
                    )
    assert faults == []


def expect_standing(page: Page, words: str, *, seconds: float = 60) -> None:
    """Wait until the facts of a run's page hold these words."""
    standing = page.get_by_role("region", name="standing")
    pattern = re.compile(r"\s+".join(words.split()))
    expect(standing).to_contain_text(pattern, use_inner_text=True, timeout=milliseconds(seconds))


def fill_by_keyboard(page: Page, job: dict[str, str]) -> None:
    """Fill the form without a pointer: fields are found by the search."""
    press_until(page, page.get_by_role("link", name="New run"))
    page.keyboard.press("Enter")
    search = page.get_by_role("searchbox", name="Search")
    expect(search).to_be_visible()
    for title, value in job.items():
        field = page.get_by_role("textbox", name=title, exact=True)
        press_until(page, search, "Shift+Tab")
        search.press("Control+a")
        page.keyboard.type(title)
        expect(page.get_by_role("status").first).to_contain_text("found")
        expect(field).to_be_visible()
        press_until(page, field)
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
    expect(page.get_by_text(f"{len(job)} changed")).to_be_visible()


def check(page: Page) -> None:
    press_until(page, page.get_by_role("button", name="Check", exact=True))
    page.keyboard.press("Enter")
    said = page.get_by_text("ok: this job can run")
    expect(said).to_be_visible(timeout=milliseconds(WORKED_S))
    expect(page.get_by_role("img", name="at the peak")).to_be_visible()
    expect(page.get_by_text("dropped: empty response")).to_be_visible()
    assert page.locator("mark.masked").count() > 3


def queue_by_keyboard(page: Page, job: dict[str, str]) -> str:
    """Add the job, see it run, and open its page. Returns the name of the run."""
    press_until(page, page.get_by_role("button", name="Add to queue"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/queue")
    expect(page.get_by_role("heading", name="Running (1)")).to_be_visible(
        timeout=milliseconds(WORKED_S)
    )
    link = page.get_by_role("link", name=re.compile("^Run of "))
    expect(link).to_be_visible(timeout=milliseconds(WORKED_S))
    expect(page.get_by_text(re.compile(rf"step [\d,]+ of {STEPS:,}"))).to_be_visible(
        timeout=milliseconds(WORKED_S)
    )
    file = page.get_by_role("button", name="Job file")
    press_until(page, file)
    page.keyboard.press("Enter")
    text = page.get_by_role("textbox", name="Job file of")
    expect(text).to_have_value(re.compile(re.escape(f"dataset_name: {job['Dataset']}\n")))
    page.keyboard.press("Escape")
    expect(text).not_to_be_visible()
    press_until(page, link)
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/*")
    return page.get_by_role("heading", level=1).inner_text()


def save_sample_and_stop(page: Page) -> None:
    expect_standing(page, rf"status running phase train step [\d,]+ of {STEPS:,}")
    expect(page.get_by_role("img", name="Loss: its last values")).to_be_visible()
    expect(page.get_by_role("log", name="log")).to_contain_text("data: train 22 documents")
    publish = page.get_by_role("button", name="Publish a checkpoint")
    expect(publish).to_be_disabled()
    page.get_by_role("button", name="Save now").click()
    expect(publish).to_be_enabled(timeout=milliseconds(60))
    page.get_by_role("button", name="Sample now").click()
    sampled = page.get_by_role("row", name=re.compile(r"^[1-9]\d* ")).first
    expect(sampled).to_be_visible(timeout=milliseconds(60))
    page.get_by_role("button", name="Stop and save").click()
    expect_standing(page, "status stopped", seconds=WORKED_S)


def step_of(page: Page) -> int:
    standing = page.get_by_role("region", name="standing").inner_text()
    found = re.search(r"step\s+([\d,]+)", standing)
    return int(found[1].replace(",", "")) if found else 0


def resume(page: Page) -> None:
    """Resume the run, and wait until it is beyond the step at which it was stopped."""
    stopped = step_of(page)
    assert 0 < stopped < STEPS
    page.get_by_role("button", name="Resume").click()
    expect_standing(page, "status running phase train", seconds=WORKED_S)
    wait_until(lambda: step_of(page) > stopped, "steps of the resumed run")


def repeat(page: Page) -> str:
    """Repeat the run with another learning rate, to its end. Returns the name of the new run."""
    page.get_by_role("region", name="actions").get_by_role("link", name="Repeat").click()
    search = page.get_by_role("searchbox", name="Search")
    for title, value in {"Learning rate": "3e-3", "Steps": "40"}.items():
        search.fill(title)
        page.get_by_role("textbox", name=title, exact=True).fill(value)
        expect(page.get_by_label(f"reset {title}", exact=True)).to_be_visible()
    # By keyboard: while the found groups open, the button still moves below a pointer.
    page.get_by_role("button", name="Add to queue").press("Enter")
    page.wait_for_url("**/queue")
    expect(page.get_by_role("heading", name="Ended (3)")).to_be_visible(
        timeout=milliseconds(WORKED_S)
    )
    newest = page.get_by_role("article").filter(has_text="done on").first
    newest.get_by_role("link", name=re.compile("^Run of ")).click()
    page.wait_for_url("**/run/*")
    expect_standing(page, "status done phase – step 40 of 40")
    return page.get_by_role("heading", level=1).inner_text()


def compare(page: Page, studio: Studio, runs: list[str]) -> None:
    page.goto(studio.address)
    button = page.get_by_role("button", name="Compare")
    for run in runs:
        expect(button).to_be_disabled()
        page.get_by_role("checkbox", name=f"compare {run}", exact=True).click()
    button.click()
    expect(page.get_by_role("heading", name="Settings that differ")).to_be_visible(
        timeout=milliseconds(60)
    )
    for differs in ("learning_rate 2e-05 0.003", f"train_steps {STEPS} 40"):
        expect(page.get_by_role("row", name=differs)).to_be_visible()
    expect(page.get_by_role("img", name="Training loss")).to_be_visible()


def chat(page: Page, studio: Studio, run: str) -> None:
    """Ask the run, fill holes by it, and move in the player of an answer."""
    page.goto(f"{studio.address}/run/{quote(run)}")
    page.get_by_role("region", name="actions").get_by_role("link", name="Chat").click()
    ready = page.get_by_text("The model is ready.")
    expect(ready).to_be_visible(timeout=milliseconds(WORKED_S))
    dialogue = page.get_by_role("log", name="dialogue")
    page.get_by_role("textbox", name="message").fill("What colour is the <b>sky</b>?")
    page.keyboard.press("Enter")
    expect(dialogue.get_by_text("What colour is the <b>sky</b>?")).to_be_visible()
    player = page.get_by_title("player of the last answer").content_frame
    slider = player.get_by_role("slider", name="denoising step")
    expect(slider).to_be_visible(timeout=milliseconds(60))
    expect(dialogue.get_by_text(re.compile(r"\d+ forwards \(NFE\)"))).to_be_visible()
    page.get_by_role("tab", name="Infill").click()
    page.get_by_role("textbox", name="text with holes").fill("Say [[2]] three times.")
    page.keyboard.press("Enter")
    expect(dialogue.get_by_text(re.compile(r"\d+ forwards \(NFE\)"))).to_have_count(2)
    move_by_keyboard(slider)


def play(page: Page, studio: Studio, run: str) -> None:
    page.goto(f"{studio.address}/player?run={quote(run)}")
    player = page.get_by_title("player of the denoising").content_frame
    move_by_keyboard(player.get_by_role("slider", name="denoising step"))


def move_by_keyboard(slider: Locator) -> None:
    slider.focus()
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "before the first step")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^step 1, block 1, "))
