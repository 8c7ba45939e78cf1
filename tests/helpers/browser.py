"""Studio in Chromium: a server on a root, a browser without a network, and what a page must be."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from helpers.support import ROOT, patience, start_main
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    WebSocket,
    expect,
    sync_playwright,
)

CHROMIUM = "/usr/bin/chromium"
SCREENS = ROOT / "tests" / "artifacts"
SOON_S, WORKED_S = 20, 120  # for an answer of the page, and for work of a process that loads torch
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_NO_HOSTS = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
_MOST_TABS = 400
# Roles that need a name; one that has none of its own is read as its content.
CONTROLS = {
    "button",
    "checkbox",
    "combobox",
    "img",
    "link",
    "log",
    "slider",
    "spinbutton",
    "switch",
    "tab",
    "textbox",
}


@dataclass
class Studio:
    """A studio of a root folder, which may be killed and started again."""

    root: Path
    process: subprocess.Popen[str]
    url: str  # with the token

    @property
    def address(self) -> str:
        return self.url.partition("?")[0].rstrip("/")

    def restart(self) -> None:
        """Kill the server as a crash does, and start another one on the same root."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=patience(SOON_S))
        self.process, self.url = _serve(self.root)


@dataclass
class Watch:
    """Complaints of pages, and the addresses outside of this machine that they asked for."""

    errors: list[str] = field(default_factory=list[str])
    outside: list[str] = field(default_factory=list[str])

    def follow(self, page: Page) -> Page:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)
        page.on("request", lambda request: self._see(request.url))
        page.on("websocket", self._see_socket)
        return page

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _see_socket(self, socket: WebSocket) -> None:
        self._see(socket.url)

    def _see(self, url: str) -> None:
        found = urlsplit(url)
        if found.scheme not in ("data", "blob", "about") and found.hostname not in LOOPBACK:
            self.outside.append(url)


def _serve(root: Path) -> tuple[subprocess.Popen[str], str]:
    process = start_main("studio", f"--run_root={root}", "--no_open", "--json")
    assert process.stdout
    return process, json.loads(process.stdout.readline())["url"]


@contextmanager
def running_studio(root: Path) -> Generator[Studio]:
    """Yield a studio of a root, and end the one that is there at the end."""
    studio = Studio(root, *_serve(root))
    try:
        yield studio
    finally:
        studio.process.terminate()
        studio.process.communicate(timeout=patience(SOON_S))


@contextmanager
def chromium() -> Generator[Browser]:
    """Yield a browser that knows the name of no host, and patience in what is expected of it."""
    expect.set_options(timeout=milliseconds(SOON_S))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", _NO_HOSTS]
        )
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, studio: Studio) -> Generator[tuple[Page, Watch]]:
    """Yield a page that the studio has let in; what it complained of fails the test at its end."""
    watch = Watch()
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-write"]
    )
    page = watch.follow(context.new_page())
    page.set_default_timeout(milliseconds(SOON_S))
    page.goto(studio.url)
    try:
        yield page, watch
    except BaseException:
        SCREENS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENS / "studio-failed.png")
        raise
    context.close()
    assert (watch.errors, watch.outside) == ([], [])


def milliseconds(seconds: float) -> float:
    return 1000 * patience(seconds)


def fits(page: Page, width: int) -> bool:
    """Return whether a page of this width needs no scrolling sideways."""
    page.set_viewport_size({"width": width, "height": 900})
    return page.evaluate("document.documentElement.scrollWidth") <= width


def press_until(page: Page, wanted: Locator, key: str = "Tab") -> None:
    """Move the focus by a key until it is on an element; fail where it never comes there."""
    for _ in range(_MOST_TABS):
        if wanted.count() == 1 and wanted.evaluate("one => one === document.activeElement"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} never leads to {wanted}")


def structure_faults(page: Page) -> list[str]:
    """Return what a screen reader would miss: names of controls, order of headings, main part.

    The names are those that Chromium computes.
    """
    faults: list[str] = []
    levels: list[int] = []
    for line in page.locator("body").aria_snapshot().splitlines():
        found = re.match(r"\s*- '?(\w+)(.*)", line)
        if not found:
            continue
        role, rest = found.groups()
        if role == "heading" and (level := re.search(r"\[level=(\d)\]", rest)):
            levels.append(int(level[1]))
        if role in CONTROLS and not re.match(r' "|\s*/', rest):
            faults.append(f"no name: {line.strip()}")
    if levels[:1] != [1] or levels.count(1) != 1:
        faults.append(f"headings do not begin with the only first one: {levels}")
    steps = pairwise(levels)
    faults += [f"a heading of level {b} after {a}" for a, b in steps if b > a + 1]
    if (mains := page.get_by_role("main").count()) != 1:
        faults.append(f"{mains} main parts")
    faults += [f"no name: {frame}" for frame in page.locator("iframe:not([title])").all()]
    return faults
