"""Curves of runs as they are printed: charts in a terminal, and JSON."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from ..run.lines import counted
from .chart import COLOURS, Look, chart
from .curves import EVAL_LOSS, LOSS, Axis, is_steep
from .runs import Run

_PIPED_WIDTH = 100  # columns where there is no terminal


def terminal() -> Console:
    """Return a console on stdout, as wide as the terminal or as COLUMNS says."""
    width = shutil.get_terminal_size((_PIPED_WIDTH, 24)).columns
    return Console(file=sys.stdout, width=max(20, width), highlight=False, markup=False)


def look_of(console: Console) -> Look:
    """Return what a console can show."""
    colour = console.is_terminal and console.color_system is not None and not console.no_color
    return Look(
        width=console.width, colour=colour, unicode=console.encoding.lower().startswith("utf")
    )


def print_chart(console: Console, title: str, runs: Sequence[Run], name: str, axis: Axis) -> None:
    """Print a chart of a metric of these runs, if there is anything to show."""
    look = look_of(console)
    curves = {number: run.history.curve(name, axis) for number, run in enumerate(runs)}
    values = [y for curve in curves.values() for y in curve.y if math.isfinite(y)]
    log = name in (LOSS, EVAL_LOSS) and is_steep(values)
    lines = chart(curves, look, x=axis, log=log)
    if lines:
        console.print(Text(f"{title}, log scale" if log else title, style="bold"))
    for line in lines:
        console.print(Text.assemble(*((text, _style(number, look)) for text, number in line)))
    for number, curve in curves.items():
        if lost := len(curve.y) - curve.finite:
            values = counted(lost, "value")
            console.print(Text(f"{title}: {values} of {runs[number].label} not finite"))
    if lines:
        console.print()


def print_legend(console: Console, runs: Sequence[Run]) -> None:
    """Print a line for each run with its mark in a chart."""
    look = look_of(console)
    for number, run in enumerate(runs):
        console.print(Text.assemble((look.mark(number), _style(number, look)), f" {run.label}"))


def _style(number: int | None, look: Look) -> str:
    if number is None or not look.colour:
        return ""
    return COLOURS[number % len(COLOURS)]


def curve_json(run: Run, axis: Axis, names: Sequence[str]) -> dict[str, Any]:
    """Return {metric: {x, y, ci95}} of a run; `ci95` where a metric has an interval."""
    found: dict[str, Any] = {}
    for name in names:
        curve = run.history.curve(name, axis)
        found[name] = {"x": curve.x, "y": curve.y}
        if curve.margin:
            found[name]["ci95"] = curve.margin
    return found
