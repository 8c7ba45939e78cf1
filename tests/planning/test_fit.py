"""Fits: exponents of synthetic isoFLOP runs, their errors, and the compute gap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plugin.planning.fit import (
    Point,
    budgets_of,
    compute_gaps,
    fit_method,
    power_law,
)

BUDGETS = (6e18, 2e19, 6e19, 2e20)
# Chinchilla's loss, E + A / N^alpha + B / D^beta: N_opt ~ C^(beta / (alpha + beta)).
ALPHA, BETA, A, B, E = 0.34, 0.28, 406.4, 410.7, 1.69


def best_size(flops: float) -> float:
    share = 1 / (ALPHA + BETA)
    return (ALPHA * A / (BETA * B)) ** share * (flops / 6) ** (BETA * share)


def runs(
    method: str = "llada",
    *,
    noise: float = 0.0,
    dearer: float = 1.0,
    budgets: tuple[float, ...] = BUDGETS,
) -> list[Point]:
    """Return runs of sizes around the best, whose loss needs `dearer` times Chinchilla's FLOPs."""
    random = np.random.default_rng(7)
    points: list[Point] = []
    for flops in budgets:
        for step in range(-3, 4):
            size = best_size(flops / dearer) * 1.3**step
            tokens = flops / 6 / size
            loss = E + A / size**ALPHA + B / (tokens / dearer) ** BETA
            loss += noise * random.standard_normal()
            points.append(
                Point(
                    method=method, parameters=round(size), tokens=tokens, loss=loss, run=f"{step}"
                )
            )
    return points


@pytest.mark.parametrize("noise", [0.0, 0.0005])
def test_exponents_of_synthetic_runs_are_within_2_percent(noise: float) -> None:
    fit, notes = fit_method("llada", runs(noise=noise))
    assert not notes
    assert fit.parameters
    assert fit.tokens
    truth = BETA / (ALPHA + BETA)
    assert fit.parameters.exponent == pytest.approx(truth, rel=0.02)
    assert fit.tokens.exponent == pytest.approx(1 - truth, rel=0.02)
    assert fit.parameters.error is not None
    assert abs(fit.parameters.exponent - truth) < 3 * fit.parameters.error + 0.005


def test_best_size_and_loss_of_a_budget_are_the_vertex() -> None:
    points = [
        Point(
            method="m",
            parameters=round(1e8 * factor),
            tokens=1e18 / 6 / round(1e8 * factor),
            loss=3 + 0.1 * math.log(factor / 1.5) ** 2,
            run="",
        )
        for factor in (0.5, 1, 2, 4)
    ]
    fit, _ = fit_method("m", points)
    (parabola,) = fit.parabolas
    assert parabola.parameters == pytest.approx(1.5e8, rel=1e-4)
    assert parabola.loss == pytest.approx(3, abs=1e-7)
    assert parabola.tokens == pytest.approx(1e18 / 6 / 1.5e8, rel=1e-4)
    c2, c1, c0 = parabola.coefficients
    x = math.log(1e8)
    assert c2 * x * x + c1 * x + c0 == pytest.approx(3 + 0.1 * math.log(1 / 1.5) ** 2, abs=1e-6)
    assert fit.parameters is None


def test_uncertainty_is_the_standard_error_of_the_slope() -> None:
    """y = 2 x^0.5 with log errors +e, -e, -e, +e at four even places: the slope stays exact."""
    xs = [math.exp(place) for place in (0, 1, 2, 3)]
    ys = [2 * x**0.5 * math.exp(0.1 * sign) for x, sign in zip(xs, (1, -1, -1, 1), strict=True)]
    law = power_law(xs, ys)
    assert law.exponent == pytest.approx(0.5)
    assert law.scale == pytest.approx(2)
    assert law.error == pytest.approx(math.sqrt(4 * 0.01 / 2 / 5))
    assert power_law(xs[:2], ys[:2]).error is None


def test_runs_of_nearly_equal_flops_share_a_budget() -> None:
    points = [
        Point(method="m", parameters=1, tokens=flops / 6, loss=1, run="")
        for flops in (1e18, 1.05e18, 3e18, 0.99e18)
    ]
    assert [len(group) for group in budgets_of(points)] == [3, 1]


def test_a_budget_without_a_minimum_is_left_out() -> None:
    rising = [
        Point(method="m", parameters=size, tokens=1e18 / size, loss=-(math.log(size) ** 2), run="")
        for size in (10, 20, 40)
    ]
    fit, (note,) = fit_method("m", rising)
    assert not fit.parabolas
    assert "no minimum" in note
    fit, (note,) = fit_method("m", rising[:2])
    assert "a parabola needs 3 sizes, got 2" in note


def test_a_vertex_outside_of_the_sizes_is_noted() -> None:
    points = [one for one in runs(budgets=(1e19,)) if int(one.run) > 0]
    fit, (note,) = fit_method("llada", points)
    assert not fit.parabolas[0].inside
    assert "outside of those that ran" in note


def test_compute_gap_is_the_ratio_of_flops_at_equal_loss() -> None:
    """Runs that learn as causal ones with a sixteenth of their FLOPs have a gap of 16."""
    masked, _ = fit_method("llada", runs(dearer=16))
    causal, _ = fit_method("causal", runs("causal", budgets=(3e17, 1e18, 4e18, 2e19)))
    gaps = compute_gaps(masked, causal)
    # The loss has a floor, so that it follows a power law only nearly.
    assert [gap.ratio for gap in gaps] == pytest.approx([16] * 4, rel=0.1)
    assert not any(gap.extrapolated for gap in gaps)
    assert [gap.flops for gap in gaps] == pytest.approx(BUDGETS, rel=1e-6)


def test_a_gap_beyond_the_causal_runs_is_marked() -> None:
    masked, _ = fit_method("llada", runs(dearer=16))
    causal, _ = fit_method("causal", runs("causal"))
    marks = [gap.extrapolated for gap in compute_gaps(masked, causal)]
    assert marks == [True, True, True, False]


def test_no_gap_without_a_causal_law() -> None:
    masked, _ = fit_method("llada", runs())
    one, _ = fit_method("causal", runs("causal", budgets=(1e19,)))
    assert compute_gaps(masked, one) == []
