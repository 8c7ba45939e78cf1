"""Figures of an evaluation: means and ratios over rows, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..run.evaluation import NORMAL_95
from .classify import wilson

Figure = dict[str, Any]  # {value, stderr, ...}; stderr None where it is not known


def figure(
    value: float,
    stderr: float | None,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    **more: Any,
) -> Figure:
    """Return a figure of values from `least` to `most`, and its 95 % interval inside of them.

    Rows without any difference have no interval: one of width 0 would say that all others are equal.
    """
    interval = None
    if stderr:
        interval = [max(least, value - NORMAL_95 * stderr), min(most, value + NORMAL_95 * stderr)]
    return {"value": value, "stderr": stderr, "ci95": interval, **more}


def mean(values: Sequence[float]) -> Figure:
    """Return the mean of independent rows; of a single row the standard error is not known."""
    count = len(values)
    centre = sum(values) / count
    if count == 1:
        return figure(centre, None, n=1)
    variance = sum((value - centre) ** 2 for value in values) / (count - 1)
    return figure(centre, math.sqrt(variance / count), n=count)


def share(right: Sequence[bool]) -> Figure:
    """Return the share of rows that are right; its interval is Wilson's, also where all are."""
    found = mean([float(one) for one in right])
    return found | {"ci95": list(wilson(sum(right), len(right)))}


def ratio(parts: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """Return sum(a) / sum(b) over independent rows (a, b), and its standard error.

    The variance comes from the residuals a - ratio * b (Cochran 1977, section 6.4).
    """
    below = sum(b for _, b in parts)
    found = sum(a for a, _ in parts) / below
    if len(parts) == 1:
        return found, None
    residual = sum((a - found * b) ** 2 for a, b in parts)
    return found, math.sqrt(residual * len(parts) / (len(parts) - 1)) / below
