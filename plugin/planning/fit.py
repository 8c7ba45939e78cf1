"""Scaling laws from isoFLOP runs: a parabola a budget, and power laws through their lowest points.

For each budget C the loss is a parabola in log N, whose vertex is the best size. Through the
vertices go N_opt ~ C^a, tokens ~ C^b and L(N_opt, C) ~ C^s, by least squares in logarithms. Source:
Chinchilla (arXiv 2203.15556), approach 2, which SMDM (arXiv 2410.18514) uses for both methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SAME_BUDGET = 1.15  # runs whose FLOPs differ by less than this factor share a budget
FEWEST = 3  # runs of a parabola


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finished run."""

    method: str
    parameters: int  # without embeddings and head
    tokens: float
    loss: float  # on held-out data, in nats a token
    run: str

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """The runs of one budget and the best size among them.

    log loss is no better a parabola than the loss itself, so the loss is fitted: loss = c2 x^2 +
    c1 x + c0 with x = log N.
    """

    flops: float  # geometric mean of the runs'
    points: tuple[Point, ...]
    coefficients: tuple[float, float, float]  # of x^2, x and 1
    parameters: float  # at the vertex
    loss: float  # at the vertex
    inside: bool  # the vertex lies between the smallest and the largest run

    @property
    def tokens(self) -> float:
        return self.flops / (6 * self.parameters)

    def as_json(self) -> dict[str, Any]:
        return {
            "flops": self.flops,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "loss": self.loss,
            "inside": self.inside,
            "runs": [point.run for point in self.points],
        }


@dataclass(frozen=True)
class PowerLaw:
    """y = scale x C ** exponent, with the standard error of the exponent.

    Two points leave no degree of freedom: the error is then None.
    """

    scale: float
    exponent: float
    error: float | None

    def at(self, flops: float) -> float:
        return self.scale * flops**self.exponent

    def inverse(self, value: float) -> float:
        """Return the FLOPs at which the law has this value."""
        return (value / self.scale) ** (1 / self.exponent)


@dataclass(frozen=True, kw_only=True)
class MethodFit:
    """Parabolas and laws of one training method; no laws with fewer than two budgets."""

    method: str
    parabolas: tuple[Parabola, ...]
    parameters: PowerLaw | None
    tokens: PowerLaw | None
    loss: PowerLaw | None

    def as_json(self) -> dict[str, Any]:
        laws = {name: getattr(self, name) for name in ("parameters", "tokens", "loss")}
        return {
            "budgets": [parabola.as_json() for parabola in self.parabolas],
            **{name: law and asdict(law) for name, law in laws.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Gap:
    """FLOPs of a method and of the causal baseline at equal loss."""

    method: str
    flops: float  # of the method, a budget of its runs
    causal_flops: float
    ratio: float
    extrapolated: bool  # no causal run is near the causal FLOPs

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def budgets_of(points: Iterable[Point]) -> list[list[Point]]:
    """Group runs by their FLOPs, the smallest budget first."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.flops):
        if groups and point.flops < SAME_BUDGET * groups[-1][0].flops:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def fit_method(method: str, points: Sequence[Point]) -> tuple[MethodFit, list[str]]:
    """Fit the runs of one method. Returns the fit, and a note for each budget left out of it."""
    parabolas: list[Parabola] = []
    notes: list[str] = []
    for group in budgets_of(points):
        found = _parabola(group)
        if isinstance(found, str):
            notes.append(f"{method}, {group[0].flops:.3g} FLOPs: {found}; left out")
            continue
        parabolas.append(found)
        if not found.inside:
            notes.append(
                f"{method}, {found.flops:.3g} FLOPs: the best size lies outside of those that ran; "
                "add runs on that side"
            )
    flops = [parabola.flops for parabola in parabolas]
    enough = len(parabolas) > 1
    return MethodFit(
        method=method,
        parabolas=tuple(parabolas),
        parameters=power_law(flops, [one.parameters for one in parabolas]) if enough else None,
        tokens=power_law(flops, [one.tokens for one in parabolas]) if enough else None,
        loss=power_law(flops, [one.loss for one in parabolas]) if enough else None,
    ), notes


def _parabola(group: Sequence[Point]) -> Parabola | str:
    """Return the parabola of one budget's runs, or why there is none."""
    sizes = {point.parameters for point in group}
    if len(sizes) < FEWEST:
        return f"a parabola needs {FEWEST} sizes, got {len(sizes)}"
    x = np.log([point.parameters for point in group])
    middle = x.mean()  # centred: log N squared would cost half of the digits
    c2, c1, c0 = np.polyfit(x - middle, [point.loss for point in group], 2).tolist()
    if c2 <= 0:
        return "its losses have no minimum"
    vertex = -c1 / (2 * c2)
    parameters = math.exp(middle + vertex)
    return Parabola(
        flops=math.exp(float(np.mean(np.log([point.flops for point in group])))),
        points=tuple(sorted(group, key=lambda point: point.parameters)),
        coefficients=(c2, c1 - 2 * c2 * middle, c0 - c1 * middle + c2 * middle**2),
        parameters=parameters,
        loss=c0 - c1**2 / (4 * c2),
        inside=min(sizes) <= parameters <= max(sizes),
    )


def power_law(flops: Sequence[float], values: Sequence[float]) -> PowerLaw:
    """Fit y = scale x C ** exponent by least squares in logarithms, to two or more points."""
    x, y = np.log(flops), np.log(values)
    spread = float(((x - x.mean()) ** 2).sum())
    exponent = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    offset = float(y.mean() - exponent * x.mean())
    free = len(values) - 2
    residual = float(((y - offset - exponent * x) ** 2).sum())
    error = math.sqrt(residual / free / spread) if free else None
    return PowerLaw(math.exp(offset), exponent, error)


def compute_gaps(masked: MethodFit, causal: MethodFit) -> list[Gap]:
    """Return, for each budget of `masked`, the FLOPs that the causal law needs for its best loss.

    Empty where the causal runs have no law of a falling loss.
    """
    law = causal.loss
    if law is None or law.exponent >= 0:
        return []
    ends = [parabola.flops for parabola in causal.parabolas]
    gaps: list[Gap] = []
    for parabola in masked.parabolas:
        needed = law.inverse(parabola.loss)
        gaps.append(
            Gap(
                method=masked.method,
                flops=parabola.flops,
                causal_flops=needed,
                ratio=parabola.flops / needed,
                extrapolated=not min(ends) <= needed <= max(ends),
            )
        )
    return gaps
