"""Decisions of a step by worked numbers: tokens, confidence, the tokens that a rule reveals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from plugin.config.sampler import SamplerSettings
from plugin.sampling.strategies import Draws, Guesses, entropy, guess, reveal

CPU = torch.device("cpu")
# One position, probabilities .5, .3, .2; the other .9, .1, 0.
LOGITS = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]).log()


def settings(**values: Any) -> SamplerSettings:
    return SamplerSettings(**values)


@pytest.mark.parametrize(
    ("strategy", "confidence"),
    [
        ("low_confidence", [0.5, 0.9]),
        ("maskgit_plus", [0.5, 0.9]),
        ("topk_margin", [0.2, 0.8]),
        ("entropy", [-1.0296530, -0.3250830]),  # sum of p ln p
    ],
)
def test_confidence_of_each_strategy_by_hand(strategy: str, confidence: list[float]) -> None:
    found = guess(LOGITS.clone(), settings(strategy=strategy), None)
    assert found.tokens.tolist() == [0, 0]
    assert found.confidence == pytest.approx(confidence, rel=1e-6)


@pytest.mark.parametrize(
    ("strategy", "of_token"),
    [("low_confidence", [0.5, 0.3]), ("maskgit_plus", [0.25 / 0.34, 0.09 / 0.34])],
)
def test_confidence_of_drawn_tokens(strategy: str, of_token: list[float]) -> None:
    """Temperature 1/2 squares the probabilities and top_k 2 drops the third: .25 and .09 of .34.

    LLaDA judges a token by the model's own distribution, Dream by the one it was drawn from.
    """
    chosen = settings(strategy=strategy, temperature=0.5, top_k=2)
    for seed in range(20):
        found = guess(LOGITS[:1].clone(), chosen, Draws((seed,), CPU))
        (token,) = found.tokens.tolist()
        assert token in (0, 1)
        assert found.confidence[0] == pytest.approx(of_token[token], rel=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.2]),
        ({"temperature": 0.5}, [25 / 38, 9 / 38, 4 / 38]),
        ({"temperature": 1.0, "top_p": 0.8}, [5 / 8, 3 / 8, 0]),  # the fewest that sum to .8
        ({"temperature": 1.0, "top_p": 0.81}, [0.5, 0.3, 0.2]),
        ({"temperature": 1.0, "top_p": 0.01}, [1, 0, 0]),  # the likeliest always stays
        ({"temperature": 1.0, "top_k": 1}, [1, 0, 0]),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [1, 0, 0]),  # .625 of what top_k left
    ],
)
def test_tokens_are_drawn_from_the_filtered_distribution(
    values: dict[str, Any], expected: list[float]
) -> None:
    N = 20_000
    found = guess(LOGITS[:1].double().expand(N, 3), settings(**values), Draws((3,), CPU))
    counts = np.bincount(found.tokens, minlength=3)
    possible = [place for place in range(3) if expected[place]]
    assert counts[possible].sum() == N
    wanted = N * np.array([expected[place] for place in possible])
    chi_square = ((counts[possible] - wanted) ** 2 / wanted).sum()
    assert chi_square <= (0, 10.828, 13.816)[len(possible) - 1]  # p of .001


def test_entropy_of_an_impossible_token_is_finite() -> None:
    assert entropy(LOGITS).tolist() == pytest.approx([1.0296530, 0.3250830], rel=1e-6)


def confidences(*values: float) -> Guesses:
    return Guesses(np.zeros(len(values), np.int64), np.array(values))


@pytest.mark.parametrize(
    ("rule", "confidence", "revealed"),
    [
        # Fast-dLLM's example: .02, .09 and .40 are below 1, 2.0 is not
        ({"factor": 1.0}, [0.99, 0.97, 0.90, 0.60], 3),
        ({"factor": 0.02}, [0.99, 0.97, 0.90, 0.60], 1),  # none fits: the surest alone
        ({"threshold": 0.9}, [0.99, 0.97, 0.90, 0.60], 2),  # .90 is not above .9
        ({"threshold": 0.5}, [0.4, 0.3, 0.2, 0.1], 1),
        ({"entropy_bound": 0.1, "strategy": "entropy"}, [-0.01, -0.05, -0.2, -0.6], 3),
        ({"entropy_bound": 0.0, "strategy": "entropy"}, [-0.01, -0.05, -0.2, -0.6], 1),
        ({}, [0.99, 0.97, 0.90, 0.60], 1),
    ],
)
def test_rules_reveal_by_hand(rule: dict[str, Any], confidence: list[float], revealed: int) -> None:
    """In any order of positions: what is revealed are the surest, wherever they stand."""
    shuffled = np.random.default_rng(1).permutation(len(confidence))
    places = reveal(confidences(*np.array(confidence)[shuffled]), 4, settings(**rule), None)
    assert sorted(shuffled[places].tolist()) == list(range(revealed))
    assert places.tolist() == sorted(places.tolist())


@pytest.mark.parametrize(("steps_left", "revealed"), [(4, 1), (3, 2), (2, 2), (1, 4), (9, 1)])
def test_a_step_reveals_its_quota_where_no_token_is_sure(steps_left: int, revealed: int) -> None:
    found = reveal(confidences(0.4, 0.3, 0.2, 0.1), steps_left, settings(threshold=0.9), None)
    assert found.tolist() == list(range(revealed))


def test_origin_reveals_each_token_with_probability_of_its_step() -> None:
    """1 / (steps left), Dream's 1 - s / t; the last step reveals all."""
    chosen = settings(strategy="origin")
    draws = Draws((5,), CPU)
    N = 20_000
    logits = torch.zeros(N, 2)
    for left in (4, 3, 2):
        found = reveal(guess(logits, chosen, draws), left, chosen, draws)
        assert abs(found.size / N - 1 / left) < 4 * math.sqrt(1 / left * (1 - 1 / left) / N)
    assert reveal(guess(logits, chosen, draws), 1, chosen, draws).size == N


def test_alg_temp_draws_the_order_as_softmax_of_confidence() -> None:
    """One of two tokens with confidence .9 and .4, at alg_temp .5: e^1.8 / (e^1.8 + e^.8)."""
    chosen, draws, N = settings(alg_temp=0.5), Draws((6,), CPU), 4_000
    first = sum(reveal(confidences(0.9, 0.4), 2, chosen, draws).tolist() == [0] for _ in range(N))
    expected = 1 / (1 + math.exp(-1.0))
    assert abs(first / N - expected) < 4 * math.sqrt(expected * (1 - expected) / N)


def test_draws_follow_their_seed_alone() -> None:
    def of(*seed: int) -> list[float]:
        return Draws(seed, CPU).uniform(4).tolist()

    assert of(1, 2, 3) == of(1, 2, 3)
    assert len({tuple(of(*seed)) for seed in [(1, 2, 3), (1, 3, 2), (2, 1, 3), (1, 2)]}) == 4
