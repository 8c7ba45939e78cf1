"""Form in a browser: problems as a person leaves a field, reasons, ways back, templates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.browser import Studio, fits, watched_page
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture
def page(studio: Studio, browser: Browser) -> Iterator[Page]:
    with watched_page(browser, studio) as (page, _):
        page.goto(f"{studio.address}/new")
        yield page


def test_fields_show_problems_reasons_and_ways_back(page: Page) -> None:
    rank = page.get_by_label("LoRA rank", exact=True)
    page.get_by_text("adapters", exact=True).click()
    expect(rank).not_to_be_visible()  # folded away: it has no effect without lora
    lora = page.get_by_role("switch", name="LoRA", exact=True)
    lora.focus()
    page.keyboard.press("Space")
    rank.fill("zero")
    problem = page.get_by_text("expected an integer >= 1 and <= 16384, got 'zero'")
    expect(problem).to_be_visible()
    expect(page.get_by_text("2 changed, 1 to correct")).to_be_visible()
    page.get_by_label("reset LoRA rank").click()
    expect(problem).not_to_be_visible()
    expect(rank).to_have_value("32")
    page.get_by_label("reset LoRA", exact=True).click()
    expect(rank).not_to_be_visible()
    page.get_by_label("Search").fill("lora_r rank")
    expect(page.get_by_text("1 field found")).to_be_visible()
    expect(page.get_by_text("has no effect without lora.").first).to_be_visible()
    page.get_by_label("Search").fill("")
    page.get_by_role("button", name="Add to queue").press("Enter")
    expect(page.get_by_text("2 to correct").first).to_be_visible()
    expect(page.get_by_text("dataset_name: expected a file, folder or hub id")).to_be_visible()
    assert all(fits(page, width) for width in (400, 800, 1600))


def test_a_template_is_saved_shown_loaded_and_deleted(page: Page, studio: Studio) -> None:
    page.get_by_label("Dataset", exact=True).fill("<b>rows</b>.jsonl")
    expect(page.get_by_text("1 changed").first).to_be_visible()
    page.get_by_role("button", name="Save as").click()
    page.get_by_role("textbox", name="Name of the template").fill("tiny")
    page.keyboard.press("Enter")
    expect(page.get_by_text("tiny is saved")).to_be_visible()
    page.get_by_role("button", name="Show as YAML").click()
    wanted = "dataset_name: <b>rows</b>.jsonl\n"
    expect(page.get_by_role("textbox", name="As YAML")).to_have_value(wanted)
    assert (studio.root / "templates" / "tiny.yaml").read_text() == wanted
    page.goto(f"{studio.address}/new?template=tiny")
    expect(page.get_by_label("Dataset", exact=True)).to_have_value("<b>rows</b>.jsonl")
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog", name="Delete the template tiny?")
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("tiny is deleted")).to_be_visible()
    assert not list((studio.root / "templates").iterdir())
