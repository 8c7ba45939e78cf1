"""Times, mask probabilities, weights and masks: oracles of the papers, and effects of seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from plugin.objectives.noise import (
    EPSILON,
    Levels,
    Noise,
    draw_mask,
    draw_times,
    generator,
    mask_probability,
    time_weight,
)

MANY = range(2000)


def times(pass_: int = 0, indices: Any = MANY, **noise: Any) -> np.ndarray:
    return draw_times(Noise(**{"seed": 11, "mask_id": 4, **noise}), pass_, indices, indices)


@pytest.mark.parametrize(
    ("t", "weight"), [(0.001, 1000.0), (0.1, 10.0), (0.5, 2.0), (0.9, 10 / 9), (1.0, 1.0)]
)
def test_linear_schedule_probability_is_t_weight_its_inverse(t: float, weight: float) -> None:
    assert mask_probability("linear", t) == t
    assert time_weight("linear", t) == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(
    ("t", "probability", "weight"),
    [
        (1 / 3, 1 / 2, math.pi / 2 * math.sqrt(3)),  # cos 60 degrees, tan 60 degrees
        (1 / 2, math.sqrt(1 / 2), math.pi / 2),
        (2 / 3, math.sqrt(3) / 2, math.pi / 2 / math.sqrt(3)),
        (1.0, 1.0, 0.0),
    ],
)
def test_cosine_schedule_at_known_angles(t: float, probability: float, weight: float) -> None:
    assert mask_probability("cosine", t) == pytest.approx(probability, rel=1e-12)
    assert time_weight("cosine", t) == pytest.approx(weight, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.95])
def test_weight_is_rate_of_masking_over_probability(schedule: str, t: float) -> None:
    step = 1e-6  # w = -alpha' / (1 - alpha), and 1 - alpha is the mask probability
    rate = (mask_probability(schedule, t + step) - mask_probability(schedule, t - step)) / (
        2 * step
    )
    assert time_weight(schedule, t) == pytest.approx(rate / mask_probability(schedule, t), rel=1e-6)


@pytest.mark.parametrize("t_sampling", ["iid", "stratified"])
@pytest.mark.parametrize(
    ("t_min", "t_max", "low", "high"),
    [(0, 1, EPSILON, 1), (0.3, 0.8, 0.3, 0.8), (0.0001, 0.5, EPSILON, 0.5)],
)
def test_times_fill_their_range(
    t_sampling: str, t_min: float, t_max: float, low: float, high: float
) -> None:
    drawn = times(t_sampling=t_sampling, t_min=t_min, t_max=t_max)
    assert low <= drawn.min() < low + 0.005
    assert high - 0.005 < drawn.max() < high
    unit = (times(t_sampling=t_sampling) - EPSILON) / (1 - EPSILON)
    assert drawn == pytest.approx(low + (high - low) * unit, rel=1e-9), (
        "one draw, stretched over the range"
    )


@pytest.mark.parametrize("t_sampling", ["iid", "stratified"])
def test_times_depend_on_seed_and_pass_alone(t_sampling: str) -> None:
    whole = times(t_sampling=t_sampling)
    assert np.array_equal(whole, times(t_sampling=t_sampling))
    assert np.array_equal(whole[[70, 3, 1500]], times(t_sampling=t_sampling, indices=[70, 3, 1500]))
    assert np.abs(whole - times(1, t_sampling=t_sampling)).min() > 0
    assert np.abs(whole - times(t_sampling=t_sampling, seed=12)).min() > 0


def test_times_stratified_follow_ordinal_iid_document() -> None:
    ordinals, documents, others = range(5), [9, 3, 4, 1, 7], [2, 8, 0, 6, 5]
    for t_sampling, follows_documents in (("stratified", False), ("iid", True)):
        noise = Noise(seed=11, mask_id=4, t_sampling=t_sampling)
        same = np.array_equal(
            draw_times(noise, 0, ordinals, documents), draw_times(noise, 0, ordinals, others)
        )
        assert same != follows_documents


def test_stratified_times_any_hundred_cover_every_tenth() -> None:
    unit = (times(indices=range(1200)) - EPSILON) / (1 - EPSILON)
    tenth = np.floor(unit * 10).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(tenth, 100)
    counts = np.stack([(windows == cell).sum(1) for cell in range(10)])
    assert counts.min() >= 7
    assert counts.max() <= 13
    loose = np.floor(times(indices=range(1200), t_sampling="iid") * 10).astype(int)
    assert np.bincount(loose[:100], minlength=10).std() > counts[:, 0].std(), (
        "independent draws are less even"
    )


def test_generator_streams_repeat_and_never_overlap() -> None:
    def draw(seed: int, index: int, pass_: int) -> tuple[float, ...]:
        return tuple(generator(seed, index, pass_).random(8))

    places = [
        (seed, index, pass_)
        for seed in (0, 1, 2**63 - 1)
        for index in (0, 1, 10**9)
        for pass_ in (0, 1, 2)
    ]
    first = [draw(*place) for place in places]
    assert [draw(*place) for place in reversed(places)] == first[::-1]
    assert len({value for one in first for value in one}) == 8 * len(places), (
        "no two streams share a number"
    )


@pytest.mark.parametrize("mask_count", ["bernoulli", "exact"])
@pytest.mark.parametrize("probability", [0.001, 0.5, 1.0])
def test_unsupervised_tokens_are_never_masked(mask_count: str, probability: float) -> None:
    supervised = np.arange(60) % 3 == 0
    for index in range(50):
        masked, _ = draw_mask(supervised, probability, mask_count, generator(1, index, 0))
        assert not masked[~supervised].any()
        assert probability < 1 or masked[supervised].all()


@pytest.mark.parametrize(
    ("probability", "length", "count", "factor"),
    [
        (0.5, 10, 5, 1.0),
        (0.5, 9, 5, 0.9),  # ceil(4.5)
        (0.3, 10, 3, 1.0),  # .3 * 10 is a little above 3 in binary
        (0.01, 10, 1, 0.1),
        (0.001, 1, 1, 0.001),
        (0.91, 10, 10, 0.91),
        (1.0, 7, 7, 1.0),
    ],
)
def test_exact_count_and_its_factor_for_rounding(
    probability: float, length: int, count: int, factor: float
) -> None:
    supervised = np.array([False, False] + [True] * length)
    masked, got = draw_mask(supervised, probability, "exact", generator(3, 0, 0))
    assert np.count_nonzero(masked) == count
    assert got == pytest.approx(factor, rel=1e-12)


def test_exact_masks_every_place_equally_often() -> None:
    supervised = np.ones(10, dtype=bool)
    hits = sum(
        draw_mask(supervised, 0.3, "exact", generator(5, index, 0))[0].astype(int)
        for index in range(4000)
    )
    assert np.abs(hits - 1200).max() < 5 * math.sqrt(4000 * 0.3 * 0.7)


def test_bernoulli_masks_each_token_by_itself() -> None:
    supervised, draws = np.ones(10, dtype=bool), 4000
    masks = np.stack(
        [
            draw_mask(supervised, 0.3, "bernoulli", generator(5, index, 0))[0]
            for index in range(draws)
        ]
    )
    assert np.abs(masks.sum(0) - 0.3 * draws).max() < 5 * math.sqrt(draws * 0.21)
    assert masks.sum(1).var() == pytest.approx(10 * 0.21, rel=0.1), "a binomial number of them"
    assert np.abs(np.corrcoef(masks.T) - np.eye(10)).max() < 5 / math.sqrt(draws)


@pytest.mark.parametrize("mask_count", ["bernoulli", "exact"])
def test_document_without_supervised_tokens_has_no_masks(mask_count: str) -> None:
    masked, factor = draw_mask(np.zeros(4, dtype=bool), 0.9, mask_count, generator(1, 0, 0))
    assert not masked.any()
    assert factor == 1.0


def test_levels_of_two_blocks() -> None:
    levels = Levels.of("cosine", [1 / 3, 1.0], [2, 3])
    assert levels.probability == pytest.approx((0.5, 1.0))
    assert levels.blocks == [slice(0, 2), slice(2, 5)]
    assert levels.per_token([3.0, 4.0]).tolist() == [3, 3, 4, 4, 4]
    assert (levels.mean_t, levels.mean_probability) == pytest.approx((2 / 3, 0.75))


def test_levels_of_one_block_keep_every_bit() -> None:
    levels = Levels.of("linear", [0.1 + 0.2], [7])
    assert (levels.mean_t, levels.mean_probability) == (0.1 + 0.2, 0.1 + 0.2)
