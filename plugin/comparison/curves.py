"""Curves of a run, out of its metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ..base.files import open_plain

METRICS = "metrics.jsonl"
LOSS, EVAL_LOSS, EVAL_CI95 = "loss", "eval/loss", "eval/loss_ci95"
MOST_BYTES = 1 << 26  # of a file that is read on; 200,000 lines
LONGEST_LINE = 1 << 20  # bytes; a longer one is broken
MOST_STEPS = 1 << 53
BUCKET = "eval/loss_t"  # and its bounds in percent: eval/loss_t30_40
Axis = Literal["step", "tokens"]
_STEEP = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of one metric over a run."""

    x: tuple[float, ...]  # steps or tokens
    y: tuple[float, ...]  # may hold NaN and infinities
    margin: tuple[float, ...] = ()  # half-widths of the 95 % intervals, where there are any

    @property
    def finite(self) -> int:
        return sum(map(math.isfinite, self.y))


# Rising steps and the values there, as numbers of 8 bytes: a long run has millions.
Column = tuple["array[int]", "array[float]"]


@dataclass(frozen=True)
class History:
    """Metrics of a run by name. `broken`: lines that hold no metrics."""

    columns: Mapping[str, Column] = field(default_factory=dict[str, Column])
    last_step: int | None = None  # None: nothing was logged
    broken: int = 0

    def points(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) wherever a metric was logged."""
        return list(zip(*self._column(name), strict=True))

    def _column(self, name: str) -> Column:
        return self.columns.get(name) or _empty()

    def last(self, name: str) -> float | None:
        points = self.points(name)
        return points[-1][1] if points else None

    def names(self, prefix: str) -> list[str]:
        """List the metrics whose names begin with a prefix."""
        return sorted(name for name in self.columns if name.startswith(prefix))

    def curve(self, name: str, axis: Axis) -> Curve:
        """Return the curve of a metric over steps, or over the tokens seen up to them."""
        steps, values = self._column(name)
        counted = self.points("tokens") if axis == "tokens" else []
        known = [(0, 0.0), *(point for point in counted if point[0] > 0)]
        x = [_tokens_at(known, step) for step in steps] if counted else steps
        interval = name.replace(EVAL_LOSS, EVAL_CI95, 1)  # of a bucket too; older runs lack it
        margins = dict(self.points(interval) if interval != name else ())
        complete = bool(margins) and all(step in margins for step in steps)
        return Curve(
            x=tuple(x),
            y=tuple(values),
            margin=tuple(margins[step] for step in steps) if complete else (),
        )


def is_steep(values: Sequence[float]) -> bool:
    """Return whether a linear axis would press the later values of a loss together.

    They are a small part of the first ones then, and all are above 0.
    """
    return bool(values) and 0 < _STEEP * min(values) < max(values)


def _tokens_at(known: list[tuple[int, float]], step: int) -> float:
    """Return the tokens seen up to a step, on the line between the steps that are known."""
    after = min(bisect_left(known, step, key=lambda point: point[0]), len(known) - 1)
    (low, before), (high, seen) = known[max(0, after - 1)], known[after]
    return seen if high == low else before + (seen - before) * (step - low) / (high - low)


def read_history(folder: Path) -> History:
    """Read the metrics of a run. Raises OSError where the file cannot be read."""
    reader = HistoryReader(folder)
    with open(reader.path, "rb", opener=open_plain) as file:
        while line := file.readline(LONGEST_LINE):
            reader.take(line)
    return reader.history


class HistoryReader:
    """Reader of a growing metrics.jsonl: each call reads what was added since the last one.

    A run may have been resumed from an earlier step. Lines that follow then replace those of the
    same step and of all later steps, which trained weights that no longer count.
    """

    def __init__(self, folder: Path):
        self.path = folder / METRICS
        self._start()

    def _start(self) -> None:
        self._columns: dict[str, Column] = {}
        self._last_step: int | None = None
        self._broken = 0
        self._file, self._offset = 0, 0

    @property
    def history(self) -> History:
        return History(self._columns, self._last_step, self._broken)

    def read_on(self) -> bool:
        """Read complete lines that are new. Returns whether there were any. Raises OSError.

        A file that is another one, or shorter, is read from its start: `resume` rewrites it. Of a
        huge one its last MOST_BYTES are read.
        """
        with open(self.path, "rb", opener=open_plain) as file:
            status = os.fstat(file.fileno())
            replaced = status.st_ino != self._file or status.st_size < self._offset
            if replaced:
                self._start()
                self._file, self._offset = status.st_ino, max(0, status.st_size - MOST_BYTES)
                file.seek(self._offset)
                if self._offset:  # amid a line
                    self._offset += len(file.readline(LONGEST_LINE))
            file.seek(self._offset)
            before = self._offset
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    break  # not written completely
                self.take(line)
                self._offset += len(line)
        return replaced or self._offset > before

    def take(self, line: bytes) -> None:
        """Add a line."""
        text = line.decode("utf-8", errors="replace")
        if not text.strip():
            return
        if (found := _read_line(text)) is None:
            self._broken += 1
            return
        step, metrics = found
        if self._last_step is not None and step < self._last_step:
            self._cut_behind(step)
        for name, value in metrics.items():
            steps, values = self._columns.get(name) or self._columns.setdefault(name, _empty())
            if steps and steps[-1] == step:
                values[-1] = value
            else:
                steps.append(step)
                values.append(value)
        self._last_step = step

    def _cut_behind(self, step: int) -> None:
        before, self._columns = self._columns, {}
        for name, (steps, values) in before.items():
            if end := bisect_right(steps, step):
                self._columns[name] = steps[:end], values[:end]


def _empty() -> Column:
    return array("q"), array("d")


def _read_line(line: str) -> tuple[int, dict[str, float]] | None:
    """Return (step, metrics) of a line; None where it holds something else."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    values = cast("dict[str, Any]", content)
    step = values.pop("step", None)
    if type(step) is not int or not 0 <= step < MOST_STEPS:
        return None
    numbers = {
        name: value if type(value) is float else _number(value) for name, value in values.items()
    }
    return step, {name: value for name, value in numbers.items() if value is not None}


def _number(value: object) -> float | None:
    """Return a number of JSON, or the NaN or infinity that a string stands for there."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 or isinstance(value, float) else None
    return float(value) if value in ("nan", "inf", "-inf") else None
