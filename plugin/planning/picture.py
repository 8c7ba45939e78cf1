"""Picture of an isoFLOP fit: loss by size for each budget, and the best size by budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.pictures import picture
from .fit import MethodFit

_MARKS = ("o", "s", "^", "D")  # one a method


def draw_fit(fits: Sequence[MethodFit], path: Path) -> None:
    """Draw the fits of all methods into a PNG. Raises JobError (exit 2)."""
    with picture(path, ncols=2, figsize=(11, 4.5)) as (_, (curves, best)):
        for fit, mark in zip(fits, _MARKS, strict=False):
            _draw_curves(curves, fit, mark)
            _draw_law(best, fit, mark)
        curves.set(
            xscale="log",
            xlabel="parameters without embeddings",
            ylabel="evaluation loss, nats a token",
        )
        best.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="best number of parameters")
        for axes in (curves, best):
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")


def _draw_curves(axes: Any, fit: MethodFit, mark: str) -> None:
    for number, parabola in enumerate(fit.parabolas):
        sizes = [point.parameters for point in parabola.points]
        (line,) = axes.plot(
            sizes,
            [point.loss for point in parabola.points],
            mark,
            color=f"C{number}",
            label=f"{fit.method}, {parabola.flops:.1e} FLOPs",
        )
        low, high = math.log(min(sizes)), math.log(max(sizes))
        xs = [low + (high - low) * step / 60 for step in range(61)]
        c2, c1, c0 = parabola.coefficients
        axes.plot(
            [math.exp(x) for x in xs],
            [c2 * x * x + c1 * x + c0 for x in xs],
            color=line.get_color(),
            linewidth=1,
        )
        axes.plot(parabola.parameters, parabola.loss, "*", color=line.get_color(), markersize=11)


def _draw_law(axes: Any, fit: MethodFit, mark: str) -> None:
    flops = [parabola.flops for parabola in fit.parabolas]
    (line,) = axes.plot(
        flops, [parabola.parameters for parabola in fit.parabolas], mark, label=fit.method
    )
    if law := fit.parameters:
        label = f"{fit.method}: N ~ C^{law.exponent:.3f}"
        axes.plot(flops, [law.at(c) for c in flops], color=line.get_color(), label=label)
