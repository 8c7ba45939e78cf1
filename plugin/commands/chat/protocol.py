"""Dialogue of a program: a line of JSON for each line of its input.

Every line but an empty one gets exactly one object: an answer, `{"note": text, "settings": {...}}`
of a command, or `{"problems": [...]}`. With `denoising`, `{"step", "canvas"}` come before an answer.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.errors import Code, JobError, Problem, json_line, report
from ...inference.show import canvas_text
from ...sampling.request import DenoisingStep, OnStep
from .screen import FRAMES_PER_S, replayed_lines
from .session import Answered, Session
from .slash import run_command

TRACED = 128  # steps of an answer's trace, neighbours merged
KEYS = ("prompt", "infill", "command")  # of a line that is an object


class JsonDialogue:
    """Objects on stdout, one at a time; problems on stderr too."""

    def __init__(self, session: Session, *, denoising: bool):
        self._session, self._denoising = session, denoising
        self._notes: list[str] = []
        self._answered: Answered | None = None
        self._answering = self._dropped = False

    def open(self) -> None:
        """Write what a program should know before its first line."""
        remark = self._session.remark
        if self._denoising:
            ready = {"ready": self._session.loaded.path, "settings": asdict(self._session.settings)}
            _write(ready | {"remark": remark})
        elif remark:
            print(remark, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self._notes.append(text)

    def ask(self, prompt: str) -> None:
        if not prompt.strip():
            raise JobError(Problem("prompt", "a text", "an empty one"))
        self._answer(lambda on_step: self._session.ask(prompt, on_step))

    def fill(self, text: str) -> None:
        self._answer(lambda on_step: self._session.fill(text, on_step))

    def replay(self) -> None:
        self._notes += replayed_lines(self._session)

    def heed(self, line: str) -> tuple[bool, int]:
        """Answer a line with its object. Return (whether more lines follow, an error's code)."""
        self._notes, self._answered = [], None
        try:
            if not self._obey(line):
                return False, Code.OK
            found = self._final()
        except JobError as error:
            code = report(error)
            _write({"problems": [problem.as_json() for problem in error.problems]})
            return True, code
        _write(found)
        return True, Code.OK

    def _obey(self, line: str) -> bool:
        kind, text = _read(line)
        if kind == "command":
            return run_command(self._session, self, text)
        (self.fill if kind == "infill" else self.ask)(text)
        return True

    def _final(self) -> dict[str, Any]:
        if self._answered is None:
            return {"note": "\n".join(self._notes), "settings": asdict(self._session.settings)}
        found = self._answered.as_json()
        if self._denoising:
            found["trace"] = self._session.steps_of(self._answered, TRACED)
        return found

    def _answer(self, ask: Callable[[OnStep], Answered]) -> None:
        shown = 0.0

        def on_step(number: int, step: DenoisingStep, ids: NDArray[np.int32]) -> None:
            nonlocal shown
            if self._dropped:
                fix = "It is dropped with its question."
                raise JobError(Problem("answer", "time to end", "Ctrl-C", fix, Code.INTERRUPTED))
            if self._denoising and (now := time.perf_counter()) - shown >= 1 / FRAMES_PER_S:
                shown = now
                canvas = canvas_text(self._session.loaded.chat, ids.tolist())
                _write({"step": step.step, "canvas": canvas})

        self._answering, self._dropped = True, False
        try:
            self._answered = ask(on_step)
        finally:
            self._answering = False

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """Let Ctrl-C drop an answer alone.

        Between two answers it ends the program, except with `denoising`: the answer that a page
        wants to stop may have ended meanwhile.
        """

        def interrupt(number: int, frame: object) -> None:
            if self._answering:
                self._dropped = True
            elif not self._denoising:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def converse(dialogue: JsonDialogue) -> int:
    """Answer the lines of the input; return the code of the first that could not be answered."""
    code = int(Code.OK)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    with dialogue.interruptible():
        for line in sys.stdin:
            if not (typed := line.strip()):
                continue
            more, wrong = dialogue.heed(typed)
            code = code or wrong
            if not more:
                break
    return code


def _read(line: str) -> tuple[str, str]:
    """Return (prompt, infill or command; its text) of a line."""
    if line.startswith("{"):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and len(content) == 1:
            ((kind, text),) = content.items()
            if kind in KEYS and isinstance(text, str):
                if kind == "command" and not text.startswith("/"):
                    raise JobError(Problem("command", "a line that begins with /", text[:80]))
                return kind, text
    if line.startswith("//"):
        return "prompt", line[1:]
    return ("command" if line.startswith("/") else "prompt"), line


def _write(content: dict[str, Any]) -> None:
    print(json_line(content), flush=True)
