"""Steps of saved answers, as a trace and the samples of a run hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import Field, model_validator

from ..base.errors import one_line
from ..base.files import open_plain
from ..run.record import Record, Text

SAMPLES = "samples.jsonl"
HOLE = "░"  # a masked token in a text
LONGEST = 2**25  # bytes that are read of a file
Place = Annotated[int, Field(ge=0, lt=2**17)]  # a page has an element for each


class DenoisingRecord(Record):
    """One denoising step of an answer: a line of a trace."""

    step: int = Field(ge=0)  # from 0, over all blocks
    block: int
    positions: list[Place]  # revealed in this step, counted from the start of the answer
    ids: list[int] = []
    text: Text  # the answer after the step, with a HOLE for each masked token
    tokens: list[Text] | None = None  # of `positions`; None: of an earlier version
    given: list[tuple[Place, Text]] = []  # of an infilling's first step: what no step reveals

    @model_validator(mode="after")
    def _as_many_tokens(self) -> Self:
        if self.tokens is not None and len(self.tokens) != len(self.positions):
            raise ValueError("as many tokens as positions")
        return self


@dataclass(frozen=True, kw_only=True)
class SavedAnswer:
    """An answer in a file, whose steps are checked when they are asked for."""

    steps: Sequence[Any]  # parsed JSON
    title: str  # one line by which a person knows it
    prompt: str = ""
    remark: str = ""

    @property
    def records(self) -> list[DenoisingRecord]:
        """Return the steps. Raises NotARecord for JSON of another program."""
        return [DenoisingRecord.read(step) for step in self.steps]


def saved_answers(path: Path) -> list[SavedAnswer]:
    """Return the answers of a trace or a samples.jsonl; of its first LONGEST bytes.

    Lines that are none, such as a half-written one, are left out. Raises OSError.
    """
    found: list[SavedAnswer] = []
    steps: list[dict[str, Any]] = []
    for line in _objects(path):
        trace = line.get("trace")
        if isinstance(trace, list):
            found.append(_sample(line, cast("list[Any]", trace)))
        elif isinstance(line.get("step"), int) and "positions" in line:
            if steps and line["step"] <= steps[-1]["step"]:
                found.append(_traced(steps, len(found)))
                steps = []
            steps.append(line)
    return [*found, _traced(steps, len(found))] if steps else found


def is_trace(path: Path) -> bool:
    """Tell whether the first line of a file is that of a trace or of samples."""
    try:
        with open(path, "rb", opener=open_plain) as file:
            line = json.loads(file.readline(2**20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(line, dict) and ("positions" in line or "trace" in line)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb", opener=open_plain) as file:
        lines = file.read(LONGEST).splitlines()
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield cast("dict[str, Any]", content)


def _sample(line: dict[str, Any], trace: list[Any]) -> SavedAnswer:
    texts = {name: line[name] for name in ("prompt", "expected") if isinstance(line.get(name), str)}
    prompt, expected = texts.get("prompt", ""), texts.get("expected", "")
    step, nfe = line.get("step"), line.get("nfe")
    parts = [f"step {step} of the training"] if isinstance(step, int) else []
    parts += [f"{nfe} forwards"] if isinstance(nfe, int) else []
    parts += [f"expected: {one_line(expected)}"] if expected else []
    title = f"step {step}: {_short(prompt)}" if isinstance(step, int) else _short(prompt)
    return SavedAnswer(steps=trace, title=title, prompt=prompt, remark="; ".join(parts))


def _traced(steps: list[dict[str, Any]], number: int) -> SavedAnswer:
    text = steps[-1].get("text")
    title = f"answer {number + 1}: {_short(text) if isinstance(text, str) else ''}"
    return SavedAnswer(steps=steps, title=title, remark=f"{len(steps)} steps")


def _short(text: str) -> str:
    line = one_line(" ".join(text[:400].split()))
    return line if len(line) <= 80 else f"{line[:79]}…"
