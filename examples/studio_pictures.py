"""Two pages of the studio as pictures for the README: a run, and a chat with its player."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
WIDTH, RUN_HEIGHT, CHAT_HEIGHT = 1280, 800, 840
WAIT_MS, LOADED_MS = 30_000, 180_000
PLAYED = 0.75  # of the steps of the last answer


@contextmanager
def studio(root: Path) -> Generator[str]:
    """Yield the address of a studio of a root folder, with its token."""
    words = ["main.py", "studio", f"--run_root={root}", "--no_open", "--json"]
    server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        yield json.loads(server.stdout.readline())["url"]
    finally:
        server.terminate()
        server.communicate(timeout=60)


def draw_studio(browser: str, run_dir: Path, prompt: str, docs: Path) -> list[Path]:
    """Photograph the page of a run, and a chat with its model. Returns the pictures."""
    run, chat = docs / "studio-run.png", docs / "studio-chat.png"
    expect.set_options(timeout=WAIT_MS)
    with studio(run_dir.parent) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(base_url=url.partition("?")[0], color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        _photograph_run(page, run_dir.name, run)
        _photograph_chat(page, prompt, chat)
        chromium.close()
    return [run, chat]


def _photograph_run(page: Page, name: str, path: Path) -> None:
    page.set_viewport_size({"width": WIDTH, "height": RUN_HEIGHT})
    page.goto(f"/run/{name}")
    expect(page.get_by_role("img", name="Loss: its last values")).to_be_visible()
    expect(page.get_by_role("heading", name="Samples")).to_be_attached()
    page.wait_for_function(DRAWN)
    page.screenshot(path=path, animations="disabled")


def _photograph_chat(page: Page, prompt: str, path: Path) -> None:
    """Ask once by the link of a run's page, and stop the player of the answer on its way."""
    page.set_viewport_size({"width": WIDTH, "height": CHAT_HEIGHT})
    page.get_by_role("main").get_by_role("link", name="Chat").click()
    expect(page.get_by_text("The model is ready.")).to_be_visible(timeout=LOADED_MS)
    message = page.get_by_role("textbox", name="message")
    message.fill(prompt)
    message.press("Enter")
    dialogue = page.get_by_role("log", name="dialogue")
    expect(dialogue.get_by_text("forwards (NFE)")).to_be_visible()
    player = page.get_by_title("player of the last answer").content_frame
    slider = player.get_by_role("slider", name="denoising step")
    slider.fill(str(int(PLAYED * int(slider.get_attribute("max") or 0))))
    page.get_by_role("heading", level=1).click()
    page.screenshot(path=path, animations="disabled")


# Charts come in, line by line, within a second.
DRAWN = """() => {
  const charts = [...document.querySelectorAll(".nicegui-echart")];
  const drawn = charts.map((one) => getElement(one.id.slice(1))?.chart);
  window.finished ??= new Set();
  for (const one of drawn) if (one && !one.heard) {
    one.heard = true;
    one.on("finished", () => window.finished.add(one));
    one.resize();
  }
  return charts.length > 3 && drawn.every((one) => window.finished.has(one));
}"""
