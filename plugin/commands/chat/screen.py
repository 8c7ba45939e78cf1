"""Faces of a dialogue for people: a terminal that shows denoising, and plain text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ...base.errors import shown
from ...inference.show import answer_line, canvas_line
from ...sampling.request import DenoisingStep, merged
from .session import Answered, Session

FRAMES_PER_S = 15  # more would cost time and show nothing
REPLAY_FRAMES = 60


class Plain:
    """Answers alone on stdout; notes on stderr."""

    def __init__(self, session: Session):
        self._session = session

    def note(self, text: str) -> None:
        print(shown(text), file=sys.stderr, flush=True)

    def ask(self, prompt: str) -> None:
        self._show(self._session.ask(prompt))

    def fill(self, text: str) -> None:
        self._show(self._session.fill(text))

    def replay(self) -> None:
        for line in replayed_lines(self._session):
            self.note(line)

    def _show(self, answered: Answered) -> None:
        print(shown(answered.answer.text), flush=True)


def replayed_lines(session: Session) -> list[str]:
    """Return the last answer as it was denoised, a line for each of some steps."""
    assert session.last
    frames = merged(session.last.taken, REPLAY_FRAMES)
    return [canvas_line(session.loaded.chat, ids.tolist()).plain for _, ids in frames]


class Terminal:
    """A terminal, on which an answer changes in place while it is denoised."""

    def __init__(self, session: Session):
        self._session = session
        self._console = Console(highlight=False)

    @property
    def prompt(self) -> str:
        """Return what stands before a question; readline must not count the colour's characters."""
        if self._console.color_system is None:
            return "you  "
        return "\x01\x1b[1;36m\x02you\x01\x1b[0m\x02  "

    def note(self, text: str) -> None:
        self._console.print(Text(shown(text), style="dim"))

    def ask(self, prompt: str) -> None:
        self._live(lambda show: self._session.ask(prompt, show))

    def fill(self, text: str) -> None:
        self._live(lambda show: self._session.fill(text, show))

    def replay(self) -> None:
        """Show the last answer's steps again, FRAMES_PER_S of them a second."""
        last = self._session.last
        assert last
        frames = merged(last.taken, REPLAY_FRAMES)
        with self._canvas() as live:
            for _, ids in frames:
                live.update(self._frame(ids.tolist()), refresh=True)
                time.sleep(1 / FRAMES_PER_S)
            live.update(answer_line(last.answer.text, last.remark), refresh=True)

    def _live(self, answer: Callable[[Callable[..., None]], Answered]) -> None:
        drawn = 0.0
        with self._canvas() as live:

            def show(number: int, step: DenoisingStep, ids: NDArray[np.int32]) -> None:
                nonlocal drawn
                if (now := time.perf_counter()) - drawn >= 1 / FRAMES_PER_S:
                    drawn = now
                    live.update(self._frame(ids.tolist()), refresh=True)

            found = answer(show)
            live.update(answer_line(found.answer.text, found.remark), refresh=True)

    def _canvas(self) -> Live:
        return Live(console=self._console, auto_refresh=False)

    def _frame(self, ids: Sequence[int]) -> Text:
        return canvas_line(self._session.loaded.chat, ids)
