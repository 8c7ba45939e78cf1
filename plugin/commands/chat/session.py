"""State of a dialogue: its turns, the settings of its answers, the last answer's steps."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...base.errors import Code, JobError, Problem
from ...base.files import open_plain, write_whole
from ...config.sampler import RULES, SamplerSettings
from ...data.turns import Turn
from ...inference.ask import Answer, answer_of, request_of
from ...inference.model import LoadedModel
from ...player.page import player_page
from ...player.records import DenoisingRecord
from ...run.lines import counted
from ...sampling.request import OnStep, merged
from ...sampling.trace import Taken, records, trace_lines

PLAYED = 2000  # steps that a player shows, neighbours merged


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer with its question, its time and its steps."""

    prompt: str
    answer: Answer
    seconds: float
    taken: list[Taken]

    @property
    def tokens_per_forward(self) -> float:
        return round(self.answer.tokens / max(1, self.answer.nfe), 3)

    @property
    def remark(self) -> str:
        """Return the figures that stand behind the answer on a terminal."""
        return (
            f"{counted(self.answer.steps, 'step')}, {self.seconds:.1f} s, "
            f"tokens a forward: {self.tokens_per_forward:g}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "text": self.answer.text,
            "steps": self.answer.steps,
            "nfe": self.answer.nfe,
            "seconds": round(self.seconds, 3),
            "tokens_per_forward": self.tokens_per_forward,
        }


@dataclass(kw_only=True)
class Session:
    """A dialogue with a loaded model, and the files that it is written to."""

    loaded: LoadedModel
    given: dict[str, Any]  # settings that were typed, over those that the model was saved with
    system: str = ""
    trace: Path | None = None
    html: Path | None = None
    turns: list[Turn] = field(default_factory=list[Turn])
    last: Answered | None = None
    _asked: int = 0

    def __post_init__(self) -> None:
        self.settings: SamplerSettings = self.loaded.settings_with(self.given)
        if self.trace:
            with (
                _written("trace", self.trace),
                open(self.trace, "w", encoding="utf-8", opener=open_plain),
            ):
                pass

    @property
    def remark(self) -> str:
        """Return what a person should know about the settings; empty: nothing."""
        return self.loaded.remark(self.settings)

    def change(self, typed: Mapping[str, Any], dropped: tuple[str, ...] = ()) -> None:
        """Change settings; a `dropped` one is again what the model was saved with.

        Raises JobError (exit 2), and leaves all as it was.
        """
        forgotten = {*dropped, *(RULES if any(rule in typed for rule in RULES) else ())}
        given = {name: value for name, value in self.given.items() if name not in forgotten}
        given |= typed
        self.settings, self.given = self.loaded.settings_with(given), given

    def ask(self, prompt: str, on_step: OnStep | None = None) -> Answered:
        """Answer the next question of the dialogue. Raises JobError, and then keeps no turn."""
        turns = [*self.turns, Turn("user", prompt)]
        system = [Turn("system", self.system)] if self.system.strip() else []
        found = self._answer(prompt, [*system, *turns], None, on_step)
        self.turns = [*turns, Turn("assistant", found.answer.text)]
        return found

    def fill(self, text: str, on_step: OnStep | None = None) -> Answered:
        """Fill the holes of a text, which is no part of the dialogue. Raises JobError."""
        return self._answer(text, [], text, on_step)

    def _answer(
        self, prompt: str, turns: list[Turn], infill: str | None, on_step: OnStep | None
    ) -> Answered:
        for name, text in [(turn.role, turn.text) for turn in turns] or [("infill", prompt)]:
            if not _is_unicode(text):
                field = "prompt" if name == "user" else name
                raise JobError(Problem(field, "a text in UTF-8", repr(text)[:80]))
        began = time.perf_counter()
        self._asked += 1
        try:
            request = request_of(self.loaded, turns, infill, (self._asked, 0))
        except JobError as error:
            if not self.turns or infill is not None:
                raise
            fix = "/new begins another, /undo forgets its last question."
            (problem,) = error.problems
            raise JobError(replace(problem, field="dialogue", fix=fix)) from error
        taken: list[Taken] = []

        def keep(number: int, step: Any, ids: Any) -> None:
            taken.append((step, ids))
            if on_step:
                on_step(number, step, ids)

        try:
            ((_, sample),) = self.loaded.stream([request], 1, settings=self.settings, on_step=keep)
        except torch.OutOfMemoryError as error:
            most, fix = str(self.settings.max_new_tokens), "Set a smaller one."
            expected = "an answer that fits the GPU"
            problem = Problem("max_new_tokens", expected, most, fix, Code.OUT_OF_MEMORY)
            raise JobError(problem) from error
        answer = answer_of(self.loaded, request, sample)
        seconds = time.perf_counter() - began
        self.last = Answered(prompt=prompt, answer=answer, seconds=seconds, taken=taken)
        self._record(self.last)
        return self.last

    def _record(self, answered: Answered) -> None:
        if self.trace:
            with (
                _written("trace", self.trace),
                open(self.trace, "a", encoding="utf-8", opener=open_plain) as file,
            ):
                file.write(trace_lines(answered.taken, self.loaded.chat))
        if self.html:
            steps = map(DenoisingRecord.read, self.steps_of(answered, PLAYED))
            page = player_page(answered.prompt, answered.remark, list(steps))
            with _written("html", self.html):
                write_whole(self.html, page)

    def steps_of(self, answered: Answered, most: int) -> list[dict[str, Any]]:
        """Return the records of an answer's steps, neighbours merged to at most `most`."""
        return list(records(merged(answered.taken, most), self.loaded.chat))

    def undo(self) -> None:
        """Forget the last question and its answer."""
        self.turns = self.turns[:-2]

    def restart(self) -> None:
        """Forget all turns; settings and the system prompt stay."""
        self.turns = []

    def save(self, path: Path) -> None:
        """Write the dialogue as a row that can be trained on. Raises JobError (exit 2)."""
        system = [Turn("system", self.system)] if self.system.strip() else []
        rows = [{"role": turn.role, "content": turn.text} for turn in [*system, *self.turns]]
        if path.exists():
            raise JobError(Problem("save", "a new file", f"{path}, which is there already"))
        text = json.dumps({"messages": rows}, ensure_ascii=False) + "\n"
        with _written("save", path):
            write_whole(path, text)


@contextmanager
def _written(name: str, path: Path) -> Generator[None]:
    """Report under the name of its option that a file cannot be written (exit 7)."""
    try:
        yield
    except OSError as error:
        got = f"{path}: {error.strerror or error}"
        raise JobError(Problem(name, "a file that can be written", got, code=Code.DISK)) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
