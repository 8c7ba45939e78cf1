"""Scaling laws of finished isoFLOP runs: `main.py plan --fit RUNS --png F`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...base.errors import JobError, Problem, json_line
from ...base.files import write_whole
from ...base.pictures import require_matplotlib
from ...config.methods import BASELINE
from ...planning.fit import Gap, MethodFit, Point, compute_gaps, fit_method
from ...planning.picture import draw_fit
from ...planning.runs import differences, read_points, run_folders
from .arguments import PlanRequest
from .model import count_parameters_of


def fit_runs(request: PlanRequest) -> tuple[dict[str, Any], list[str]]:
    """Return the laws of all runs as JSON and as lines; draw them if a picture is asked for.

    Raises JobError (exit 2 or 4): no runs, unfinished ones, no parabola.
    """
    if request.png:
        require_matplotlib()
    folders = run_folders(request.fit)
    count = cache(lambda path: count_parameters_of(path).parameters)
    printed, fits = fit_points(read_points(folders, count))
    printed["notes"] += differences(folders)
    if request.png:
        draw_fit(fits, request.png)
        printed["png"] = str(request.png)
    if request.out:
        _write(request.out, printed)
    return printed, [*_lines(printed, fits), *printed["notes"]]


def _write(path: Path, printed: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json_line(printed) + "\n")
    except OSError as error:
        raise JobError(Problem("out", "a file that can be written", f"{path}: {error}")) from error


def fit_points(points: Sequence[Point]) -> tuple[dict[str, Any], list[MethodFit]]:
    """Fit the runs of every method, and compare the methods with the causal baseline.

    Raises JobError (exit 2) when no budget of any method has a parabola.
    """
    fits: dict[str, MethodFit] = {}
    notes: list[str] = []
    for method in sorted({point.method for point in points}):
        fits[method], found = fit_method(method, [one for one in points if one.method == method])
        notes += found
    if not any(fit.parabolas for fit in fits.values()):
        fix = "Train a grid: main.py plan --grid F1,F2 --sizes A,B,C --out FOLDER."
        raise JobError(Problem("fit", "three sizes at one budget", "; ".join(notes), fix))
    gaps: list[Gap] = []
    if baseline := fits.get(BASELINE):
        for method, fit in fits.items():
            gaps += compute_gaps(fit, baseline) if method != BASELINE else []
    return {
        "fits": {method: fit.as_json() for method, fit in fits.items()},
        "compute_gap": [gap.as_json() for gap in gaps],
        "mean_gap": {
            method: _geometric([gap.ratio for gap in gaps if gap.method == method])
            for method in sorted({gap.method for gap in gaps})
        },
        "notes": notes,
    }, list(fits.values())


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _lines(printed: dict[str, Any], fits: Sequence[MethodFit]) -> Iterator[str]:
    for fit in fits:
        for parabola in fit.parabolas:
            yield (
                f"{fit.method}, {parabola.flops:.3g} FLOPs: best {parabola.parameters:.4g} parameters,"
                f" {parabola.tokens:.4g} tokens, loss {parabola.loss:.4f}"
            )
        for name, law in (("N", fit.parameters), ("tokens", fit.tokens), ("loss", fit.loss)):
            if law:
                error = "" if law.error is None else f" ± {law.error:.4f}"
                yield f"{fit.method}: {name} = {law.scale:.4g} C^{law.exponent:.4f}{error}"
    for gap in printed["compute_gap"]:
        beyond = ", beyond the causal runs" if gap["extrapolated"] else ""
        yield (
            f"{gap['method']} at {gap['flops']:.3g} FLOPs equals causal at {gap['causal_flops']:.3g}:"
            f" {gap['ratio']:.2f} times the compute{beyond}"
        )
