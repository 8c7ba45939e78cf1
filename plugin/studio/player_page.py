"""Player of the studio: any saved denoising below the root, chosen and played."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from nicegui import app, ui

from ..base.errors import first_line, one_line
from ..comparison.summary import folders_of_runs
from ..player.page import player_page
from ..player.records import SAMPLES, SavedAnswer, saved_answers
from ..player.saved import TRACES, below, denoising_files
from ..run.record import NotARecord
from .frame import frame, theme_of
from .place import Place

# A player is as high as its content, and dark where the page is.
_FIT = """(event) => {
  const frame = event.target, { body, documentElement } = frame.contentDocument;
  const follow = () => {
    documentElement.dataset.theme = document.body.matches(".body--dark") ? "dark" : "light";
  };
  const watched = { attributes: true, attributeFilter: ["class"] };
  new MutationObserver(follow).observe(document.body, watched);
  follow();
  const fit = () => { frame.style.height = `${Math.min(640, body.scrollHeight + 2)}px`; };
  new ResizeObserver(fit).observe(body);
}"""


@dataclass(frozen=True)
class _Choice:
    """The answers of a chosen file, and why there are none."""

    answers: list[SavedAnswer]
    problem: str = ""


def file_of(place: Place, name: str) -> Path | None:
    """Return the file that a page names: a run means its samples. None for one outside."""
    path = below(place.root, name)
    if path is None:
        return None
    return path / SAMPLES if os.path.isdir(path) else path if path.suffix == ".jsonl" else None


def chosen(place: Place, name: str) -> _Choice:
    """Return the answers in a file, or the reason why it shows none."""
    path = file_of(place, name)
    if path is None:
        return _Choice([], f"{one_line(name)} is no file of denoisings below the root")
    try:
        answers = saved_answers(path)
    except OSError as error:
        return _Choice([], f"{one_line(name)}: {error.strerror or first_line(error)}")
    return _Choice(answers, "" if answers else f"{one_line(name)} holds no denoising yet")


def played(place: Place, name: str, sample: int | None, theme: str) -> str | None:
    """Return the page of an answer, counted from 0; None: the last. None where there is none."""
    answers = chosen(place, name).answers
    number = len(answers) - 1 if sample is None else sample
    if not 0 <= number < len(answers):
        return None
    answer = answers[number]
    try:
        return player_page(answer.prompt, answer.remark, answer.records, theme=theme)
    except NotARecord as error:
        return player_page(answer.prompt, f"it cannot be played: {error}", [], theme=theme)


def embed(address: str, title: str) -> None:
    """Add a player to a page, as high as it is."""
    element = ui.element("iframe").classes("player").on("load", js_handler=_FIT)
    element.props["src"], element.props["title"] = address, title


def pages(place: Place) -> None:
    @app.get("/play/{name:path}")
    def _(request: Request, name: str, sample: int | None = None) -> HTMLResponse:
        page = played(place, name, sample, theme_of(request))
        if page is None:
            return HTMLResponse("There is no such denoising.", 404)
        return HTMLResponse(page)

    @ui.page("/player", response_timeout=60)
    async def _(run: str = "", sample: int | None = None) -> None:
        await _show(place, run, sample)


async def _show(place: Place, name: str, sample: int | None) -> None:
    runs = (folder for folder, _ in folders_of_runs(place.root))
    files = await asyncio.to_thread(denoising_files, place.root, runs)
    first = f"{name}/{SAMPLES}" if name and not name.endswith(".jsonl") else name
    if first and first not in files:
        files = [first, *files]
    with frame("Player", here="/player"):
        if not files:
            ui.label(
                "No denoising is saved here yet. A run keeps those of its samples, at every "
                "evaluation, and `chat MODEL --trace FILE` those of a dialogue: put the file "
                f"into {TRACES}/."
            ).classes("dim")
            return
        _Chooser(place, files, first or files[0]).build(sample)


class _Chooser:
    """The two choices of the page, a file and an answer in it, and the player below them."""

    def __init__(self, place: Place, files: list[str], first: str):
        self._place, self._files, self._first = place, files, first
        self._played = ""

    def build(self, sample: int | None) -> None:
        with ui.element("div").classes("row-of"):
            self._file = ui.select(
                self._files, value=self._first, label="file", with_input=True
            ).classes("grow")
            self._answer = ui.select({}, label="answer").classes("grow")
        self._problem = ui.label().classes("problem").props("role=status")
        self._box = ui.element("div")
        self._file.on_value_change(lambda: self._read(None))
        self._answer.on_value_change(self._play)
        ui.timer(0, lambda: self._read(sample), once=True)

    async def _read(self, sample: int | None) -> None:
        name = self._file.value or ""
        choice = await asyncio.to_thread(chosen, self._place, name)
        titles = {number: one.title for number, one in enumerate(choice.answers)}
        self._problem.set_text(choice.problem)
        last = len(titles) - 1 if titles else None
        self._answer.set_options(titles, value=sample if sample in titles else last)
        self._play()

    def _play(self) -> None:
        number = self._answer.value
        query = urlencode({"sample": number})
        address = "" if number is None else f"/play/{quote(self._file.value or '')}?{query}"
        if address != self._played:
            self._played = address
            self._box.clear()
            if address:
                with self._box:
                    embed(address, "player of the denoising")
