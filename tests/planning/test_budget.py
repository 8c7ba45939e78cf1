"""Budgets: the four published step counts, tokens, and the best size for a budget."""

from __future__ import annotations

import math

import pytest

from plugin.planning.budget import Law, mean_length, steps_for_flops, steps_for_tokens
from plugin.planning.sizes import SIZES


@pytest.mark.parametrize(
    ("size", "flops", "stochastic", "machines", "steps"),
    [
        (170, 10e18, 0.0, 1, 18_710),
        (1028, 100e18, 0.0, 1, 30_932),
        (170, 60e18, 0.01, 1, 112_828),
        (1028, 1600e18, 0.01, 2, 497_413),
    ],
)
def test_the_published_step_counts_are_exact(
    size: int, flops: float, stochastic: float, machines: int, steps: int
) -> None:
    budget = steps_for_flops(
        flops,
        SIZES[size].parameters,
        rows=256,
        machines=machines,
        mean_tokens=mean_length(2048, stochastic),
    )
    assert budget.steps == steps
    assert budget.rows == 256 // machines
    assert 0 <= 1 - budget.flops / flops < 1 / steps


@pytest.mark.parametrize(("share", "mean"), [(0, 2048), (1, 1024.5), (0.5, 1536.25)])
def test_mean_length_of_rows_cut_at_random(share: float, mean: float) -> None:
    assert mean_length(2048, share) == mean


def test_steps_for_tokens_are_full_steps() -> None:
    budget = steps_for_tokens(10_050, 7, rows=10, machines=3, mean_tokens=100)
    assert (budget.rows, budget.steps, budget.tokens) == (3, 11, 9_900)


def test_a_ratio_gives_the_same_size_by_flops_and_tokens() -> None:
    law = Law.of_ratio(200, "stated")
    parameters = law.for_tokens(2e10)
    assert parameters == pytest.approx(1e8)
    assert law.for_flops(6 * parameters * 2e10) == pytest.approx(parameters)


def test_a_fitted_law_is_inverted_for_tokens() -> None:
    law = Law(3e-4, 0.6, "fit")
    parameters = law.for_flops(1e20)
    assert math.isclose(law.for_tokens(1e20 / (6 * parameters)), parameters, rel_tol=1e-9)
