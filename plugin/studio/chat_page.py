"""Chat of the studio: a dialogue with a model of the root, its settings, its evaluation beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from nicegui import app, background_tasks, ui
from nicegui.events import GenericEventArguments

from ..base.errors import one_line, shown
from ..comparison.summary import folders_of_runs
from ..config.sampler import UNTYPED, setting_help
from ..dialogue.dialogue import Dialogue, Exchange
from ..player.saved import names_in
from .evaluation_table import show_evaluation
from .frame import frame, heading, theme_of
from .place import Place
from .player_page import embed

STYLE = Path(__file__).with_name("chat.css")
POLL_S = 0.1
_SAVED = re.compile(r"fused|checkpoint-\d+")
# Enter sends, with Shift it is a line's end; a key that ends a composed letter is neither.
_KEYS = """(event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  emit(event.target.value);
}"""
_CHANGED = "(event) => emit(event && event.target ? event.target.value : event)"


def models_below(root: Path) -> list[str]:
    """Return the names of the runs below a root that have a fused model or a checkpoint."""
    folders = sorted(folders_of_runs(root))
    return [name for name, path in folders if any(map(_SAVED.fullmatch, names_in(Path(path))))]


def field_text(value: Any) -> str:
    """Return a setting as a field shows it; empty: none."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def pages(place: Place) -> None:
    dialogue = Dialogue()
    app.add_static_file(local_file=STYLE, url_path="/chat.css", max_cache_age=0)
    ui.add_head_html('<link rel="stylesheet" href="/chat.css">', shared=True)
    app.on_shutdown(dialogue.close)

    @app.get("/chat/play/{number}")
    def _(request: Request, number: int, bare: bool = False) -> HTMLResponse:
        page = dialogue.player(number, theme_of(request), bare=bare)
        if page is None:
            return HTMLResponse("The steps of this answer are not kept any more.", 404)
        return HTMLResponse(page)

    @ui.page("/chat")
    def _(request: Request, model: str = "") -> None:
        with frame("Chat", here="/chat"):
            _ChatPage(place, dialogue).build(model, opens=may_open(place, model, request.headers))


def may_open(place: Place, model: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a page that is opened loads its model: a run, and the link was on a page of ours.

    Any other link must not start a process: a person then presses Load.
    """
    ours = headers.get("sec-fetch-site") == "same-origin"
    return ours and place.run_dir(model) is not None


class _ChatPage:
    """One open page of the dialogue."""

    def __init__(self, place: Place, dialogue: Dialogue):
        self._place, self._dialogue = place, dialogue
        self._seen, self._shown = -1, ()
        self._kept: tuple[object, ...] | None = None  # of the settings that are shown
        self._stops: list[ui.button] = []

    def build(self, model: str, *, opens: bool) -> None:
        wanted = model or self._dialogue.model
        names = [*dict.fromkeys([*([wanted] if wanted else []), *models_below(self._place.root)])]
        with ui.element("div").classes("row-of"):
            self._model = (
                ui.select(
                    names,
                    value=wanted or None,
                    label="model: a run, a folder or a hub id",
                    with_input=True,
                    new_value_mode="add-unique",
                    on_change=lambda event: self._open(event.value),
                )
                .classes("grow")
                .props("hide-bottom-space")
            )
            self._state = ui.label().props("role=status").classes("dim")
            self._reload = ui.button("Load", on_click=lambda: self._open(self._model.value))
        with ui.element("div").classes("chat").on("keydown.escape", self._dialogue.stop, []):
            with ui.element("div").classes("talk"):
                self._build_talk()
            with ui.element("div").classes("talk"):
                self._build_side()
        if opens and model != self._dialogue.model:
            ui.timer(0, lambda: self._open(model), once=True)  # once a browser shows the page
        ui.timer(POLL_S, self._update)

    def _build_talk(self) -> None:
        self._log = ui.element("div").classes("talk").props('role=log aria-label="dialogue"')
        self._canvas = ui.label().classes("said live").props("aria-hidden=true")
        with ui.tabs().props("align=left dense no-caps") as tabs:
            ui.tab("prompt", "Chat")
            ui.tab("infill", "Infill")
        with ui.tab_panels(tabs, value="prompt").classes("wide").props(":animated=false"):
            for kind, label in (
                ("prompt", "message (Enter sends, Shift+Enter: a new line, Escape stops)"),
                ("infill", "text with holes, such as: the [[4]] sky"),
            ):
                with ui.tab_panel(kind).classes("composer"):
                    self._build_field(kind, label)
        with ui.element("div").classes("row-of"):
            self._undo = ui.button("Undo", on_click=lambda: self._obey(self._dialogue.undo()))
            self._new = ui.button("New", on_click=lambda: self._obey(self._dialogue.restart()))
            for button in (self._undo, self._new):
                button.props("outline")

    def _build_field(self, kind: str, label: str) -> None:
        field = ui.textarea(label).props("autogrow rows=2").classes("wide")

        def send(text: str) -> None:
            if self._dialogue.state == "ready" and text.strip():
                field.set_value("")
                background_tasks.create(self._dialogue.say(kind, text))

        field.on("keydown", lambda event: send(str(event.args)), js_handler=_KEYS)
        with ui.element("div").classes("row-of"):
            name = "Send" if kind == "prompt" else "Fill"
            ui.button(name, on_click=lambda: send(field.value or ""))
            stop = ui.button("Stop", on_click=self._dialogue.stop).props("outline")
            self._stops.append(stop)

    def _build_side(self) -> None:
        heading("Settings")
        self._settings = ui.element("div").classes("talk")
        heading("Evaluation")
        self._evaluation = ui.element("div").classes("talk")

    def _open(self, name: str | None) -> None:
        if not name:
            return
        folder = self._place.run_dir(name) or self._place.root / name
        path = str(folder) if os.path.isdir(folder) else name
        background_tasks.create(self._dialogue.open(name, path))
        ui.navigate.history.replace(f"/chat?{urlencode({'model': name})}")

    async def _obey(self, doing: Any) -> None:
        if problem := await doing:
            ui.notify(problem, type="negative", multi_line=True)

    def _update(self) -> None:
        """Show what has changed since the last look."""
        dialogue = self._dialogue
        if dialogue.state == "answering":
            self._canvas.set_text(shown(dialogue.canvas) or "…")
        if dialogue.version == self._seen:
            return
        self._seen = dialogue.version
        busy, ready = dialogue.state == "answering", dialogue.state == "ready"
        self._state.set_text(_state_line(dialogue))
        other = self._model.value != dialogue.model
        self._reload.set_visibility(other or dialogue.state in ("none", "ended"))
        self._canvas.set_visibility(busy)
        for stop in self._stops:
            stop.set_enabled(busy)
        self._undo.set_enabled(ready and dialogue.has_turn)
        self._new.set_enabled(ready and bool(dialogue.exchanges))
        self._show_exchanges()
        self._show_settings()

    def _show_exchanges(self) -> None:
        """Add what is new; the log is built again where something in it was changed or removed."""
        if (now := tuple(self._dialogue.exchanges)) == self._shown:
            return
        self._shown = now
        self._log.clear()
        with self._log:
            for one in now:
                _exchange(one, plays=one is now[-1])

    def _show_settings(self) -> None:
        dialogue = self._dialogue
        kept = (dialogue.model, dialogue.settings, dialogue.system, dialogue.state == "loading")
        if kept == self._kept:
            return
        self._kept = kept
        self._settings.clear()
        with self._settings:
            if dialogue.settings:
                self._text("system prompt", dialogue.system)
            for name, value in dialogue.settings.items():
                if name not in UNTYPED:
                    self._setting(name, value, dialogue.saved.get(name))
        self._evaluation.clear()
        folder = self._place.run_dir(dialogue.model) if dialogue.model else None
        with self._evaluation:
            if folder:
                show_evaluation(folder)
            else:
                ui.label("of a run alone").classes("dim")

    def _text(self, label: str, value: str) -> None:
        field = ui.textarea(label, value=value).props("autogrow rows=1")

        async def change(event: GenericEventArguments) -> None:
            self._dialogue.system = str(event.args or "")
            await self._obey(self._dialogue.command(f"/system {event.args or ''}"))

        field.classes("wide").on("change", change, js_handler=_CHANGED)

    def _setting(self, name: str, value: Any, saved: Any) -> None:
        text, choices = setting_help(name)
        label = f"{name} (changed)" if value != saved else name

        async def change(typed: object) -> None:
            word = str(typed if typed not in (None, "") else "default").strip()
            await self._obey(self._dialogue.command(f"/set {name} {word}"))
            self._kept = None  # a refused value gives way to the one that holds
            self._show_settings()

        with ui.element("div").classes("setting"):
            if choices:
                field: Any = ui.select([*choices], value=value, label=label)
                field.on_value_change(lambda event: change(event.value))
            else:
                field = ui.input(label, value=field_text(value), placeholder="none")
                field.on("change", lambda event: change(event.args), js_handler=_CHANGED)
            field.tooltip(text).props["aria-description"] = text
            if value != saved:
                ui.button(icon="undo", on_click=lambda: change("default")).props(
                    f'flat round dense aria-label="reset {name}"'
                )


def _state_line(dialogue: Dialogue) -> str:
    """Return the state of the model as one line."""
    words = {
        "none": "Choose a model.",
        "loading": "The model is loaded; a large one takes minutes.",
        "ready": "The model is ready.",
        "answering": "It answers.",
        "ended": "The process ended.",
    }
    more = dialogue.problem if dialogue.state == "ended" else dialogue.remark
    return f"{words[dialogue.state]} {one_line(more)}".strip()


def _exchange(one: Exchange, *, plays: bool) -> None:
    ui.label(shown(one.asked)).classes("said mine")
    if one.problem:
        ui.label(one_line(one.problem)).classes("problem").props("role=alert")
    if not one.answer:
        return
    if one.answer.text:
        ui.label(shown(one.answer.text)).classes("said")
    else:
        ui.label("an empty answer").classes("said dim")
    with ui.element("div").classes("row-of"):
        ui.label(one.answer.remark).classes("dim")
        if one.answer.trace and not plays:
            ui.link("denoising", f"/chat/play/{one.number}", new_tab=True)
    if one.answer.trace and plays:
        embed(f"/chat/play/{one.number}?bare=true", "player of the last answer")
