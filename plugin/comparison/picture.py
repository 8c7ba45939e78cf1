"""Pictures of curves: the losses of several runs, and all curves of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..base.pictures import picture
from .curves import BUCKET, EVAL_LOSS, LOSS, Axis, Curve, is_steep
from .results import evaluations
from .runs import Run

# Okabe and Ito's colours, which colour-blind readers tell apart, without yellow: it is faint on
# white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")  # a colour that is used again has another style
_SMOOTHED = 40  # points of a curve from which its mean is drawn over it
_LONGEST = 36  # characters of a label in a legend
_EVALUATION = "Evaluation loss, 95 % interval"
_RATE = "learning_rate"
_NATS = "nats a token"


def draw_comparison(runs: Sequence[Run], axis: Axis, path: Path) -> None:
    """Draw the training and evaluation losses of runs as a PNG. Raises JobError (exit 2)."""
    panels = [name for name in (LOSS, EVAL_LOSS) if any(run.history.points(name) for run in runs)]
    width = 6.0 * max(1, len(panels))
    with picture(path, ncols=max(1, len(panels)), figsize=(width, 4.8), squeeze=False) as (
        figure,
        ((*all_axes,),),
    ):
        for axes, name in zip(all_axes, panels or [LOSS], strict=True):
            curves = [run.history.curve(name, axis) for run in runs]
            title = _training_title(curves) if name == LOSS else _EVALUATION
            _prepare(axes, title, "loss", axis)
            for number, curve in enumerate(curves):
                _draw_curve(axes, curve, **_style(number))
            _fit_height(axes, curves, steep=True)
        handles = [_handle(run, **_style(number)) for number, run in enumerate(runs)]
        columns = max(1, min(len(runs), int(width // 3)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def draw_run(run: Run, axis: Axis, path: Path) -> None:
    """Draw all curves of a run as a PNG: losses, buckets, rate, speed, gradient norm.

    Raises JobError (exit 2).
    """
    panels: list[Callable[[Any], None]] = [
        draw for name, draw in _panels(run, axis).items() if run.history.names(name)
    ]
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    size = (4.6 * columns, 3.5 * rows + 0.4)
    with picture(path, nrows=rows, ncols=columns, figsize=size, squeeze=False) as (figure, grid):
        figure.suptitle(_shortened(run.label))
        for draw, axes in zip(panels, grid.flat, strict=False):
            draw(axes)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)


def _panels(run: Run, axis: Axis) -> dict[str, Callable[[Any], None]]:
    """Return {metric: the function that draws its panel}, in the order of the picture."""

    def line(name: str, title: str, label: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            _prepare(axes, title, label, axis)
            curve = run.history.curve(name, axis)
            _draw_curve(axes, curve, **_style(0))
            _fit_height(axes, [curve], steep=name == LOSS)

        return draw

    return {
        LOSS: line(LOSS, _training_title([run.history.curve(LOSS, axis)]), "loss"),
        EVAL_LOSS: lambda axes: _draw_evaluation(axes, run, axis),
        BUCKET: lambda axes: _draw_buckets(axes, run, axis),
        _RATE: lambda axes: _draw_rate(axes, run, axis),
        "tokens_per_s": line("tokens_per_s", "Speed", "tokens/s"),
        "grad_norm": line("grad_norm", "Gradient norm", "norm before clipping"),
    }


def _draw_rate(axes: Any, run: Run, axis: Axis) -> None:
    _prepare(axes, "Learning rate", "learning rate", axis)
    curve = run.history.curve(_RATE, axis)
    axes.plot(curve.x, curve.y, linewidth=1.8, **_style(0))


def _draw_evaluation(axes: Any, run: Run, axis: Axis) -> None:
    _prepare(axes, _EVALUATION, "loss", axis)
    curve = run.history.curve(EVAL_LOSS, axis)
    _draw_curve(axes, curve, **_style(0))
    finite = [(one, at) for at, one in enumerate(evaluations(run)) if math.isfinite(one.value)]
    if finite:
        best, at = min(finite, key=lambda pair: pair[0].value)
        label = f"lowest: {best.value:.4f} at step {best.step}"
        axes.plot(curve.x[at], best.value, "*", color="black", markersize=10, label=label, zorder=4)
        axes.legend(loc="upper right", fontsize="small", frameon=False)
    _fit_height(axes, [curve], steep=True)


def _draw_buckets(axes: Any, run: Run, axis: Axis) -> None:
    """Draw the evaluation loss by mask ratio: from dark, few masks, to light, many."""
    from matplotlib import colormaps

    _prepare(axes, "Evaluation loss by mask ratio", _NATS, axis)
    names = run.history.names(BUCKET)
    shades = colormaps["viridis"]
    curves = [run.history.curve(name, axis) for name in names]
    for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
        low, high = name.removeprefix(BUCKET).split("_")
        shade = shades(0.92 * number / max(1, len(names) - 1))
        label = f"{int(low)}–{int(high)} %"
        _draw_interval(axes, curve, shade)
        axes.plot(curve.x, curve.y, marker=".", color=shade, label=label, linewidth=1.3)
    _fit_height(axes, curves)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        fontsize="x-small",
        frameon=False,
        reverse=True,
    )


def _prepare(axes: Any, title: str, label: str, axis: Axis) -> None:
    """Give a panel its title, its axes and its grid."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(title, fontsize="medium")
    axes.set(xlabel="tokens" if axis == "tokens" else "step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == "step"))
    axes.xaxis.set_major_formatter(EngFormatter(sep="", places=None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> dict[str, Any]:
    style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": style}


def _handle(run: Run, **style: Any) -> Any:
    """Return the legend's line of a run, which a run without curves has too."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=2, label=_shortened(run.label), **style)


def _shortened(label: str) -> str:
    """Return a label as matplotlib shows it: no formula, and no longer than a legend is wide."""
    short = label if len(label) <= _LONGEST else f"...{label[3 - _LONGEST :]}"
    hidden = " " if short.startswith("_") else ""  # legends leave such names out
    return hidden + short.replace("$", r"\$")


def _training_title(curves: Sequence[Curve]) -> str:
    smoothed = any(len(curve.y) >= _SMOOTHED for curve in curves)
    return "Training loss, bold: running mean" if smoothed else "Training loss"


def _draw_curve(axes: Any, curve: Curve, **style: Any) -> None:
    """Draw a curve: its interval as a band, and its mean over the noise of many points."""
    _draw_interval(axes, curve, style["color"])
    if len(curve.y) < _SMOOTHED:
        axes.plot(curve.x, curve.y, marker=".", linewidth=1.6, **style)
        return
    axes.plot(curve.x, curve.y, linewidth=0.8, alpha=0.3, **style)
    axes.plot(curve.x, _smooth(curve.y), linewidth=1.8, **style)


def _draw_interval(axes: Any, curve: Curve, colour: object) -> None:
    if curve.margin:
        low = [y - margin for y, margin in zip(curve.y, curve.margin, strict=True)]
        high = [y + margin for y, margin in zip(curve.y, curve.margin, strict=True)]
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the mean over the nearest twentieth of the points; NaN stays NaN and is left out."""
    half = max(1, len(values) // 40)
    finite = [math.isfinite(value) for value in values]
    sums = [
        0.0,
        *accumulate(value if ok else 0.0 for value, ok in zip(values, finite, strict=True)),
    ]
    counts = [0, *accumulate(finite)]
    found: list[float] = []
    for at, ok in enumerate(finite):
        reach = min(half, at, len(values) - 1 - at)  # symmetric at the ends too
        low, high = at - reach, at + reach + 1
        mean = (sums[high] - sums[low]) / (counts[high] - counts[low]) if ok else math.nan
        found.append(mean)
    return found


def _fit_height(axes: Any, curves: Sequence[Curve], *, steep: bool = False) -> None:
    """Limit the height to the curves and their last intervals: a first interval may be huge.

    `steep`: the axis of losses, logarithmic where they fall far.
    """
    values = [y for curve in curves for y in curve.y if math.isfinite(y)]
    if not values or max(values) == min(values):
        return
    ends = [(curve.y[-1], curve.margin[-1]) for curve in curves if curve.margin]
    bounds = [y + side * margin for y, margin in ends for side in (-1, 1)]
    values += [bound for bound in bounds if math.isfinite(bound) and (bound > 0 or not steep)]
    low, high = min(values), max(values)
    if steep and is_steep(values):
        from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

        room = (high / low) ** 0.06
        axes.set(yscale="log", ylim=(low / room, high * room), ylabel="loss, log scale")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    room = 0.06 * (high - low)
    axes.set_ylim(low - room, high + room)
