"""Comparison of runs: `main.py compare RUN RUN ... --png F`. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..base.errors import JobError, Problem, guarded, one_line
from ..base.pictures import require_matplotlib
from ..base.redact import guard_streams
from ..comparison.curves import EVAL_LOSS, LOSS
from ..comparison.notes import setting_text
from ..comparison.runs import read_runs
from ..comparison.side_by_side import SideBySide, side_by_side
from ..comparison.terminal import curve_json, print_chart, print_legend, terminal
from ..run.folder import to_json
from .compare_arguments import CurveRequest, compare_options

_NAME_WIDTH, _RUN_WIDTH = 26, 14  # least columns of a table's first column, and of a run's


def main(argv: Sequence[str]) -> int:
    guard_streams()
    return guarded(lambda: _compare(compare_options(argv)))


def _compare(request: CurveRequest) -> int:
    if request.png:
        require_matplotlib()
    runs = read_runs(request.runs)
    if len(runs) < 2:
        fix = f"main.py plot {request.runs[0]} shows one."
        raise JobError(Problem("runs", "two runs or more", "one", fix))
    found = side_by_side(runs)
    if request.png:
        from ..comparison.picture import draw_comparison

        draw_comparison(runs, found.axis, request.png)
    if request.json:
        print(to_json(_as_json(request, found)))
    else:
        _print(terminal(), request, found)
    return 0


def _as_json(request: CurveRequest, found: SideBySide) -> dict[str, Any]:
    return {
        "runs": {run.label: str(run.folder) for run in found.runs},
        "differ": found.differ,
        "results": {row.name: row.as_json() for row in found.rows},
        "comparable": found.compared and found.compared.as_json(),
        "axis": found.axis,
        "curves": {run.label: curve_json(run, found.axis, (LOSS, EVAL_LOSS)) for run in found.runs},
        "notes": found.notes,
        "png": str(request.png) if request.png else None,
    }


def _print(console: Console, request: CurveRequest, found: SideBySide) -> None:
    settings = [
        (name, {label: setting_text(value) for label, value in row.items()})
        for name, row in found.differ.items()
    ]
    if settings:
        _print_table(console, "settings that differ", found.labels, settings)
    else:
        console.print("settings that differ: none\n")
    rows = [(row.title, {label: row.text(label) for label in found.labels}) for row in found.rows]
    _print_table(console, "results", found.labels, rows)
    for name, title in ((LOSS, "training loss"), (EVAL_LOSS, "evaluation loss")):
        print_chart(console, title, found.runs, name, found.axis)
    print_legend(console, found.runs)
    for note in found.notes:
        console.print(Text(f"note: {one_line(note)}"))
    if request.png:
        console.print(Text(f"picture: {one_line(str(request.png))}"))


def _print_table(
    console: Console,
    title: str,
    labels: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, str]]],
) -> None:
    """Print a column for each run; where the terminal is too narrow, in several tables."""
    together = max(1, (console.width - _NAME_WIDTH) // _RUN_WIDTH)
    for start in range(0, len(labels), together):
        shown = labels[start : start + together]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column(title, overflow="fold")
        for label in shown:
            table.add_column(Text(label), overflow="fold", min_width=6)
        for name, cells in rows:
            table.add_row(Text(one_line(name)), *(Text(cells[label]) for label in shown))
        console.print(table)
        console.print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
