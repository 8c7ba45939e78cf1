"""Curves as text: braille dots in a terminal with colours, a mark for each run without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .curves import Curve

COLOURS = ("blue", "yellow", "green", "red", "magenta", "cyan")  # one a run, in turn
MARKS = "•×+o*#%@"  # without colours
ASCII_MARKS = "ox+*#%@&"
NARROWEST = 24  # columns
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, [row][column]
_BRAILLE = 0x2800
_WIDEST_LABEL = 8

Part = tuple[str, int | None]  # text, and the number of the run whose colour it has
Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """Abilities of a terminal."""

    width: int
    colour: bool
    unicode: bool

    @property
    def braille(self) -> bool:
        """Return whether curves are drawn as dots, which only colours tell apart."""
        return self.colour and self.unicode

    def mark(self, number: int) -> str:
        if self.braille:
            return "━━"
        marks = MARKS if self.unicode else ASCII_MARKS
        return marks[number % len(marks)]


@dataclass
class _Canvas:
    """Cells of a chart: the dots in each, and the curves that have passed through it."""

    columns: int
    rows: int
    dots: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    owners: dict[tuple[int, int], list[int]] = field(
        default_factory=dict[tuple[int, int], list[int]]
    )

    def line(self, number: int, points: Sequence[Point]) -> None:
        """Draw a line through points, in shares of the width and of the height from below."""
        across, down = 2 * self.columns - 1, 4 * self.rows - 1
        dots = [(round(x * across), down - round(y * down)) for x, y in points]
        # A long curve has many points a dot.
        for start, end in dict.fromkeys(zip(dots, dots[1:] or dots, strict=False)):
            self._segment(number, start, end)

    def _segment(self, number: int, start: tuple[int, int], end: tuple[int, int]) -> None:
        steps = max(1, abs(end[0] - start[0]), abs(end[1] - start[1]))
        for step in range(steps + 1):
            x = round(start[0] + (end[0] - start[0]) * step / steps)
            y = round(start[1] + (end[1] - start[1]) * step / steps)
            cell = (y // 4, x // 2)
            self.dots[cell] = self.dots.get(cell, 0) | _DOTS[y % 4][x % 2]
            owners = self.owners.setdefault(cell, [])
            if number not in owners:
                owners.append(number)

    def row(self, row: int, look: Look) -> Iterator[Part]:
        """Yield the cells of a row. Where curves cross, columns show them in turn."""
        for column in range(self.columns):
            if not (owners := self.owners.get((row, column))):
                yield " ", None
                continue
            number = owners[column % len(owners)]
            dots = chr(_BRAILLE + self.dots[row, column])
            yield dots if look.braille else look.mark(number), number


def chart(
    curves: Mapping[int, Curve], look: Look, *, rows: int = 12, x: str, log: bool = False
) -> list[list[Part]]:
    """Return the lines of a chart; empty where nothing is finite or the terminal is too narrow.

    `curves`: by the number of their run. `x`: name of the horizontal axis. `log`: the vertical axis
    is logarithmic, and all values are above 0.
    """
    points = {number: list(_parts(curve, log=log)) for number, curve in curves.items()}
    flat = [point for parts in points.values() for part in parts for point in part]
    if not flat or look.width < NARROWEST:
        return []
    low, high = _bounds([y for _, y in flat])
    left, right = min(x for x, _ in flat), max(x for x, _ in flat)
    canvas = _Canvas(min(look.width, 100) - _WIDEST_LABEL - 2, rows)
    width = right - left or 1.0
    for number, parts in points.items():
        for part in parts:
            scaled = [((x - left) / width, (y - low) / (high - low)) for x, y in part]
            canvas.line(number, scaled)
    return [*_body(canvas, look, low, high, log=log), *_foot(canvas, look, left, right, x)]


def _parts(curve: Curve, *, log: bool) -> Iterator[list[Point]]:
    """Yield the parts of a curve between values that are not finite."""
    part: list[Point] = []
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(y):
            part.append((x, math.log(y) if log else y))
        elif part:
            yield part
            part = []
    if part:
        yield part


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the vertical axis, apart also where all values are equal."""
    low, high = min(values), max(values)
    return (
        (low, high) if high > low else (low - max(abs(low), 1) / 10, high + max(abs(high), 1) / 10)
    )


def _body(
    canvas: _Canvas, look: Look, low: float, high: float, *, log: bool
) -> Iterator[list[Part]]:
    edge = "│" if look.unicode else "|"
    for row in range(canvas.rows):
        share = 1 - row / (canvas.rows - 1)
        named = row in (0, canvas.rows // 2, canvas.rows - 1)
        value = low + (high - low) * share
        label = number_text(math.exp(value) if log else value) if named else ""
        yield [(f"{label:>{_WIDEST_LABEL}} {edge}", None), *canvas.row(row, look)]


def _foot(canvas: _Canvas, look: Look, left: float, right: float, x: str) -> Iterator[list[Part]]:
    corner, line = ("└", "─") if look.unicode else ("+", "-")
    margin = " " * (_WIDEST_LABEL + 1)
    yield [(f"{margin}{corner}{line * canvas.columns}", None)]
    ends = number_text(left), number_text(right)
    room = canvas.columns - len(ends[0]) - len(ends[1])
    yield [(f"{margin} {ends[0]}{x:^{max(room, 0)}}{ends[1]}".rstrip(), None)]


def number_text(value: float) -> str:
    """Write a number in at most 8 characters: 0.0012, 12.5k, 3.1M, 2e+12."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1000 * size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e12 or value == 0 else f"{value:.1e}"
