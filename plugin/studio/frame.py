"""Frame of every page: its title, the way to the others, dark or light, and the style sheet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastapi import Request
from nicegui import app, context, ui

from ..base.errors import one_line
from ..player.page import THEMES

FILES = ("studio.css", "studio.js")
_COLOURS = {"primary": "#5b4bb2", "secondary": "#33615b", "dark": "#1b1a20", "dark_page": "#141318"}
PAGES = (
    ("Runs", "/"),
    ("New run", "/new"),
    ("Queue", "/queue"),
    ("Chat", "/chat"),
    ("Player", "/player"),
)
_THEME = "theme"  # cookie: dark or light; without it, as the browser is set
EVERY_S = 2.0  # looks of a page at the disk
IDLE = 40  # times the CPU time of a look that passes before the next: at most 2.5 % of a core
_KEEP = "document.cookie = 'theme={}; path=/; SameSite=Strict; max-age=31536000'"


def add_style() -> None:
    ui.button.default_props("no-caps")
    for kind in (ui.input, ui.select, ui.textarea):
        kind.default_props("outlined dense")
    for name in FILES:
        file = Path(__file__).with_name(name)
        app.add_static_file(local_file=file, url_path=f"/{name}", max_cache_age=0)
    head = '<link rel="stylesheet" href="/studio.css"><script src="/studio.js"></script>'
    ui.add_head_html(head, shared=True)


def theme_of(request: Request | None) -> str:
    """Return the theme that a browser's cookie asks for; empty: as the browser is set."""
    theme = request.cookies.get(_THEME, "") if request else ""
    return theme if theme in THEMES else ""


def pause_s(spent_s: float) -> float:
    """Return the seconds from a look at the disk that took this CPU time to the next one."""
    return max(EVERY_S, IDLE * spent_s)


@contextmanager
def frame(title: str, *, here: str = "") -> Generator[None]:
    """Build a page. `here`: the address of PAGES that it belongs to."""
    ui.page_title(f"{one_line(title)} · studio")
    ui.colors(**_COLOURS)
    dark = ui.dark_mode({"dark": True, "light": False}.get(theme_of(context.client.request)))

    async def switch() -> None:
        is_dark = await ui.run_javascript("document.body.classList.contains('body--dark')")
        dark.set_value(not is_dark)
        ui.run_javascript(_KEEP.format("light" if is_dark else "dark"))

    ui.link("Skip to the content", "#content").classes("skip")
    with ui.header().classes("bar items-center"):
        with ui.element("nav").props('aria-label="pages"'):
            for name, address in PAGES:
                link = ui.link(name, address).classes("nav")
                if address == here:
                    link.props('aria-current="page"')
        ui.button(icon="contrast", on_click=switch, color=None).props(
            'flat round dense aria-label="dark or light"'
        ).classes("theme")
    with ui.element("div").props("id=content tabindex=-1").classes("content"):
        heading(title, level=1)
        yield


def flat(words: str, act: Callable[[], object], name: str = "") -> ui.button:
    """Add a button without a frame. `name`: what a screen reader says instead of its words."""
    button = ui.button(words, on_click=act).props("flat dense")
    button.props["aria-label"] = name or words
    return button


def heading(text: str, *, level: int = 2) -> ui.label:
    """Add a heading. Its text is shown as it is, on one line."""
    label = ui.label(one_line(text)).props(f"role=heading aria-level={level}")
    return label.classes("title" if level == 1 else "heading")


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Add a table. Every cell is shown as text."""
    with (
        ui.element("div").classes("scroll").props("tabindex=0"),
        ui.element("table").classes("plain"),
    ):
        with ui.element("thead"), ui.element("tr"):
            for column in columns:
                _cell("th", column).props("scope=col")
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for text in row:
                        _cell("td", text)


def _cell(tag: str, text: str) -> ui.element:
    with ui.element(tag) as cell:
        ui.label(text).style("white-space: pre-wrap")
    return cell


def say_one_line(error: Exception) -> None:
    """Build the page that is shown instead of one that could not be built."""
    with frame("This page cannot be shown"):
        ui.label(f"{type(error).__name__}: its lines are where the studio was started.")
