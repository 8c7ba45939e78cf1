"""Curves of one run: `main.py plot RUN --png F`. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.text import Text

from ..base.errors import JobError, Problem, guarded, one_line
from ..base.pictures import require_matplotlib
from ..base.redact import guard_streams
from ..comparison.curves import BUCKET, EVAL_LOSS, LOSS
from ..comparison.runs import Run, axis_of, read_run
from ..comparison.terminal import curve_json, print_chart, terminal
from ..run.folder import to_json
from .compare_arguments import CurveRequest, plot_options

_CHARTS = {
    LOSS: "training loss",
    EVAL_LOSS: "evaluation loss",
    "learning_rate": "learning rate",
    "tokens_per_s": "tokens/s",
    "grad_norm": "gradient norm",
}


def main(argv: Sequence[str]) -> int:
    guard_streams()
    return guarded(lambda: _plot(plot_options(argv)))


def _plot(request: CurveRequest) -> int:
    if request.png:
        require_matplotlib()
    run = read_run(request.runs[0])
    if not run.history.columns:
        got = f"{run.folder}, which is {run.status}"
        raise JobError(Problem("runs", "a run with metrics", got, "; ".join(run.notes)))
    axis = axis_of([run])
    if request.png:
        from ..comparison.picture import draw_run

        draw_run(run, axis, request.png)
    if request.json:
        names = [*_CHARTS, *run.history.names(BUCKET)]
        print(
            to_json(
                {
                    "run": str(run.folder),
                    "status": run.status,
                    "axis": axis,
                    "curves": curve_json(run, axis, names),
                    "notes": run.notes,
                    "png": str(request.png) if request.png else None,
                }
            )
        )
    else:
        _print(request, run)
    return 0


def _print(request: CurveRequest, run: Run) -> None:
    """Print the losses as charts; with a picture, its place alone."""
    console, axis = terminal(), axis_of([run])
    console.print(Text(f"{run.label}: {run.status}"))
    for name, title in _CHARTS.items():
        if not request.png or name in (LOSS, EVAL_LOSS):
            print_chart(console, title, [run], name, axis)
    for note in run.notes:
        console.print(Text(f"note: {one_line(note)}"))
    if request.png:
        console.print(Text(f"picture: {one_line(str(request.png))}"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
