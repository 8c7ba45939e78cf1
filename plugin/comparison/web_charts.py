"""Curves as charts of a web page: thinned points, and the options with which ECharts draws them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .chart import number_text
from .curves import BUCKET, EVAL_LOSS, LOSS, Axis, Curve, History, is_steep

MOST_POINTS = 2000  # of a curve: more than a wide chart has pixels
_DOTTED = 60  # points up to which each is marked
# Okabe and Ito's colours, which colour-blind readers tell apart, as comparison/picture.py has them,
# but for their blue and black: lighter, since they are seen on a dark page too.
COLOURS = ("#2f86c9", "#D55E00", "#009E73", "#CC79A7", "#b98a00", "#56B4E9", "#8d86a8")
DASHES = ("solid", "dashed", "dotted")
# From few masked tokens to many.
_SHADES = [
    "#5b4bb2",
    "#4763bd",
    "#3578bd",
    "#2a8bb5",
    "#2b9ca5",
    "#3aab8f",
    "#5bb673",
    "#84bd58",
    "#adbf45",
    "#d3bd3f",
]
_BOUNDS = re.compile(rf"{BUCKET}\d{{1,3}}_\d{{1,3}}")  # a foreign file may hold other names

Points = list[list[float | None]]  # [x, y], or [x, low, high] of a band; None: not finite


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve of a chart as it is drawn."""

    name: str
    points: Points
    colour: str
    dash: str = "solid"
    band: bool = False  # between two values


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart."""

    title: str
    series: tuple[Series, ...]
    x: str = "step"
    log: bool = False

    @property
    def shape(self) -> tuple[object, ...]:
        """Return what is drawn anew when it changes; all else is a patch of points."""
        return (self.log, *(one.name for one in self.series))

    @property
    def last_values(self) -> str:
        """Return the last value of each curve in words."""
        last = [(one.name, *one.points[-1]) for one in self.series if one.points and not one.band]
        steps = {x for _, x, _ in last}
        found: list[str] = []
        for name, x, value in last:
            shown = "not finite" if value is None else number_text(value)
            found.append(f"{name}: {shown}" + (_at(self.x, x) if len(steps) > 1 else ""))
        return "; ".join(found) + (_at(self.x, steps.pop()) if len(steps) == 1 else "")


def _at(axis: str, x: float | None) -> str:
    return f" at {axis} {x or 0:,.0f}"


def run_panels(history: History, axis: Axis) -> list[Panel]:
    """Return the charts of one run for which it has metrics."""
    plain = (
        ("Learning rate", "learning_rate"),
        ("Speed", "tokens_per_s"),
        ("Gradient norm before clipping", "grad_norm"),
    )
    evaluation = history.curve(EVAL_LOSS, axis)
    curves = (("training", history.curve(LOSS, axis)), ("held out", evaluation))
    panels = [loss_panel("Loss", curves, axis)]
    names = [name for name in history.names(BUCKET) if _BOUNDS.fullmatch(name)]
    shades = [_SHADES[number * len(_SHADES) // len(names)] for number in range(len(names))]
    buckets = [(_bucket_name(name), history.curve(name, axis)) for name in names]
    title = "Held-out loss by share of masked tokens"
    panels.append(loss_panel(title, buckets, axis, shades))
    for title, name in plain:
        curve = Series(name=name, points=thinned(history.curve(name, axis)), colour=COLOURS[0])
        panels.append(Panel(title=title, series=(curve,), x=axis))
    return [panel for panel in panels if any(one.points for one in panel.series)]


def loss_panel(
    title: str,
    curves: Sequence[tuple[str, Curve]],
    axis: Axis,
    colours: Sequence[str] = COLOURS,
) -> Panel:
    """Return a chart of losses, each with its 95 % interval where there is one.

    An interval has the name of its curve: the legend shows and hides both.
    """
    curves = [(name, curve) for name, curve in curves if curve.x]
    lines: list[Series] = []
    for number, (name, curve) in enumerate(curves):
        colour = colours[number % len(colours)]
        dash = DASHES[number // len(colours) % len(DASHES)]
        lines.append(Series(name=name, points=thinned(curve), colour=colour, dash=dash))
        if curve.margin:
            lines.append(Series(name=name, points=_band(curve), colour=colour, band=True))
    values = [y for _, curve in curves for y in curve.y if math.isfinite(y)]
    return Panel(title=title, series=tuple(lines), x=axis, log=is_steep(values))


def _bucket_name(metric: str) -> str:
    low, high = metric.removeprefix(BUCKET).split("_")
    return f"{int(low)}–{int(high)} %"


def thinned(curve: Curve) -> Points:
    """Return a curve with at most MOST_POINTS points: of each part, its lowest and its highest.

    Parts grow by doubling, so that points which are shown stay while a run adds others.
    """
    values, places = curve.y, [*range(len(curve.y))]
    if len(values) > MOST_POINTS:
        size = 1 << math.ceil(math.log2(2 * len(values) / (MOST_POINTS - 2)))
        ends = {0, len(values) - 1}  # the newest value is the one that is read
        for start in range(0, len(values), size):
            part = values[start : start + size]
            if not math.isfinite(sum(part)):
                part = [value for value in part if math.isfinite(value)] or part[:1]
            ends |= {values.index(value, start) for value in (min(part), max(part))}
        places = sorted(ends)
    return [[curve.x[at], _shown(values[at])] for at in places]


def _shown(value: float) -> float | None:
    """Return a value with the digits that a chart shows: half the bytes."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _band(curve: Curve) -> Points:
    rows = list(zip(curve.x, curve.y, curve.margin, strict=True))
    step = -(-len(rows) // MOST_POINTS)
    finite = [(x, y, m) for x, y, m in rows[::step] if math.isfinite(y) and math.isfinite(m)]
    return [[x, max(y - m, y / 100) if y > 0 else y - m, y + m] for x, y, m in finite]


def chart_options(panel: Panel) -> dict[str, Any]:
    """Return the options of ECharts for a panel."""
    return {
        "animation": False,
        "grid": {"left": 8, "right": 24, "top": 40, "bottom": 26, "containLabel": True},
        "legend": {
            "show": len(panel.series) > 1,
            "type": "scroll",
            "top": 0,
            "left": 0,
            "width": "80%",  # the rest is the toolbox's
            "data": [one.name for one in panel.series if not one.band],
        },
        "tooltip": {"trigger": "axis", "confine": True},
        "toolbox": {
            "right": 0,
            "top": -6,
            "feature": {"saveAsImage": {"type": "png", "name": panel.title, "title": "PNG"}},
        },
        "xAxis": {
            "type": "value",
            "min": "dataMin",
            "max": "dataMax",
            "name": panel.x,
            "nameLocation": "middle",
            "nameGap": 26,
            "axisLabel": {"showMaxLabel": False, "hideOverlap": True},
            "splitLine": {"show": False},
        },
        "yAxis": {"type": "log"} if panel.log else {"type": "value", "scale": True},
        "series": [_drawn(one) for one in panel.series],
    }


def _drawn(series: Series) -> dict[str, Any]:
    data = [list(point) for point in series.points]  # the browser's copy is patched, not this one
    common = {"name": series.name, "data": data, "itemStyle": {"color": series.colour}}
    if series.band:
        more = {"type": "custom", ":renderItem": "studioBand", "clip": True, "silent": True}
        shape = {"encode": {"x": 0, "y": -1}}  # the axis fits the curves: an interval may be huge
        return {**common, **more, **shape, "tooltip": {"show": False}, "z": 1}
    return {
        **common,
        "type": "line",
        "showSymbol": len(data) <= _DOTTED,
        "symbolSize": 5,
        "lineStyle": {"width": 1.8, "type": series.dash},
    }


def patches(before: Panel, now: Panel) -> list[tuple[int, int, Points]]:
    """Return (number of a series, points that stay, points after them) of those that changed."""
    found: list[tuple[int, int, Points]] = []
    for number, (old, new) in enumerate(zip(before.series, now.series, strict=True)):
        shorter = min(len(old.points), len(new.points))
        stay = next((at for at in range(shorter) if old.points[at] != new.points[at]), shorter)
        if stay < max(len(old.points), len(new.points)):
            found.append((number, stay, new.points[stay:]))
    return found


def by_title(panels: Sequence[Panel]) -> Mapping[str, Panel]:
    return {panel.title: panel for panel in panels}
