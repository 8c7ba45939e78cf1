"""Masked-diffusion loss: the cost of known logits under every norm and schedule."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from helpers.tiny import MASK, document_item, noised, rules

from plugin.config.methods import METHODS
from plugin.objectives import OBJECTIVES
from plugin.objectives.masked import Corruption, corruptions
from plugin.objectives.noise import EPSILON, Levels, draw_times

DOCUMENTS = 20_000
UNIFORM = math.log(50)  # nats a masked token costs under uniform logits over 50 words


def one(
    supervised: list[bool],
    t: float = 0.5,
    *,
    norm: str = "token",
    index: int = 0,
    pass_: int = 0,
    **noise: object,
) -> Corruption:
    flags = np.array(supervised)
    ids = np.arange(10, 10 + flags.size, dtype=np.int32)
    return noised(ids, flags, t, index=index, pass_=pass_, **{"seed": 5, "norm": norm, **noise})


def test_masked_token_at_half_time_costs_two_ln_two() -> None:
    drawn = one([False, True], mask_count="exact", t=0.5 + 1e-12)
    assert drawn.masked.tolist() == [1]
    # exact counts mask the one token always and halve its weight; bernoulli masks it half of the
    # time at full weight
    assert drawn.weight[0] == pytest.approx(1.0)
    drawn = next(
        each
        for each in (one([False, True], index=index) for index in range(100))
        if each.masked.size
    )
    cost = float(drawn.weight[0]) * math.log(2) / drawn.count
    assert cost == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("mask_count", ["bernoulli", "exact"])
def test_masked_tokens_become_the_mask_and_all_others_stay(mask_count: str) -> None:
    supervised = [False] * 3 + [True] * 40
    for index in range(200):
        drawn = one(supervised, 0.6, index=index, mask_count=mask_count)
        assert (drawn.masked >= 3).all()
        assert (np.diff(drawn.masked) > 0).all()
        assert (drawn.noisy[drawn.masked] == MASK).all()
        kept = np.setdiff1d(np.arange(43), drawn.masked)
        assert np.array_equal(drawn.noisy[kept], kept + 10)


def test_masks_depend_on_seed_document_and_pass_alone() -> None:
    supervised = [True] * 64
    start = one(supervised, index=3, pass_=2)
    assert np.array_equal(start.masked, one(supervised, index=3, pass_=2, norm="batch").masked)
    for changed in (
        one(supervised, index=4, pass_=2),
        one(supervised, index=3, pass_=1),
        one(supervised, index=3, pass_=2, seed=6),
    ):
        assert not np.array_equal(start.masked, changed.masked)


def test_masks_of_a_later_time_hold_the_earlier_masks() -> None:
    masks = [set(one([True] * 50, t, index=8).masked.tolist()) for t in (0.2, 0.5, 0.8)]
    assert masks[0] < masks[1] < masks[2]


@pytest.mark.parametrize(
    ("norm", "weight", "count"),
    [("token", 2.0, 4.0), ("sequence", 0.5, 1.0), ("batch", 2.0, 1.0), ("masked", 2.0, 2.0)],
)
def test_norms_of_four_answer_tokens_at_half_time(norm: str, weight: float, count: float) -> None:
    drawn = one([False] * 6 + [True] * 4, norm=norm, mask_count="exact")
    assert drawn.masked.size == 2
    assert drawn.weight.tolist() == [weight, weight]
    assert drawn.count == count


@pytest.mark.parametrize(
    ("norm", "unit"), [("token", 1), ("sequence", 1 / 4), ("masked", 1), ("batch", 1)]
)
def test_unit_is_what_a_weight_of_one_is(norm: str, unit: float) -> None:
    found = one([False] * 2 + [True] * 4, norm=norm, mask_count="exact")
    assert found.unit is not None
    assert found.unit.tolist() == pytest.approx([unit] * 2)
    assert (found.weight / found.unit).tolist() == pytest.approx([2.0] * 2), "1 / t"


@cache
def epoch(
    schedule: str, norm: str, mask_count: str, t_sampling: str, documents: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return weighted loss [S] under uniform logits, count [S], and the mean supervised length."""
    lengths = np.random.default_rng(1).integers(1, 40, size=documents)
    how = rules(seed=17, schedule=schedule, mask_count=mask_count, t_sampling=t_sampling, norm=norm)
    times = draw_times(how.noise, 0, range(documents), range(documents))
    losses, counts = np.zeros(documents), np.zeros(documents)
    ids, supervised = np.arange(42, dtype=np.int32), np.arange(42) >= 2
    for index, (t, length) in enumerate(zip(times, lengths, strict=True)):
        item = document_item(ids[: length + 2], supervised[: length + 2], 2, index=index)
        levels = Levels.of(schedule, [float(t)], [int(length) + 2])
        (drawn,) = corruptions(item, levels, how.noise, how.loss)
        losses[index], counts[index] = drawn.weight.sum(dtype=np.float64) * UNIFORM, drawn.count
    return losses, counts, float(lengths.mean())


# E[w(t) p(t)] and E[p(t)] over t in [eps, 1).
WEIGHTED = {"linear": 1.0, "cosine": (1 - math.sin(math.pi * EPSILON / 2)) / (1 - EPSILON)}
PROBABILITY = {
    "linear": (1 + EPSILON) / 2,
    "cosine": 2 / math.pi * math.cos(math.pi * EPSILON / 2) / (1 - EPSILON),
}


def expected(schedule: str, norm: str, mean_length: float) -> float:
    """Return nats in closed form.

    Linear: ln V by tokens and by documents' own tokens, about 2 ln V by masked tokens.
    """
    per_token = WEIGHTED[schedule] * UNIFORM
    return {"batch": per_token * mean_length, "masked": per_token / PROBABILITY[schedule]}.get(
        norm, per_token
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "norm"),
    [
        *(("linear", norm) for norm in ("token", "sequence", "batch", "masked")),
        ("cosine", "token"),
        ("cosine", "masked"),
    ],
)
def test_uniform_logits_cost_the_closed_form(schedule: str, norm: str) -> None:
    losses, counts, mean_length = epoch(schedule, norm, "bernoulli", "stratified", DOCUMENTS)
    loss = losses.sum() / counts.sum()
    residual = losses - loss * counts
    standard_error = math.sqrt((residual**2).sum()) / counts.sum()
    wanted = expected(schedule, norm, mean_length)
    assert abs(loss - wanted) < 4 * standard_error
    assert standard_error < 0.03 * wanted, "or the line above says nothing"


@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_exact_counts_linear_noise_cost_ln_v_each(norm: str) -> None:
    losses, counts, _ = epoch("linear", norm, "exact", "stratified", 4000)
    assert losses / counts == pytest.approx(np.full(4000, UNIFORM), rel=1e-6)


def test_exact_counts_cosine_noise_errs_by_its_times_alone() -> None:
    losses, counts, mean_length = epoch("cosine", "sequence", "exact", "stratified", 4000)
    # A low-discrepancy mean over S times errs by about log(S) / S.
    assert losses.sum() / counts.sum() == pytest.approx(
        expected("cosine", "sequence", mean_length), rel=3e-3
    )


def test_masked_norm_of_linear_noise_tends_to_two_ln_v() -> None:
    assert expected("linear", "masked", 20.0) == pytest.approx(2 * UNIFORM, rel=2e-3)


def test_stratified_times_reduce_the_noise_of_a_step() -> None:
    spread = {}
    for t_sampling in ("iid", "stratified"):
        losses, counts, _ = epoch("cosine", "sequence", "exact", t_sampling, 4000)
        spread[t_sampling] = (losses.reshape(-1, 40).sum(1) / counts.reshape(-1, 40).sum(1)).std()
    assert spread["stratified"] < 0.4 * spread["iid"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_objective(method: str) -> None:
    assert OBJECTIVES[method].method == method


@pytest.mark.parametrize("mask_count", ["bernoulli", "exact"])
def test_two_blocks_are_masked_and_weighed_by_their_own_times(mask_count: str) -> None:
    """Block diffusion: the answer's first block at t = 0.8, its second at 0.2."""
    how = rules(mask_count=mask_count, seed=5)
    levels = Levels.of("linear", [0.8, 0.2], [14, 10])
    ids, supervised = np.arange(24, dtype=np.int32), np.arange(24) >= 4
    masked, summed = np.zeros(24), np.zeros(24)
    for index in range(4000):
        item = document_item(ids, supervised, 4, index=index)
        (drawn,) = corruptions(item, levels, how.noise, how.loss)
        masked[drawn.masked] += 1 / 4000
        summed[drawn.masked] += drawn.weight / 4000
        weights = np.unique(drawn.weight[drawn.masked < 14])
        assert weights.tolist() in ([], [pytest.approx(1.25)])
    shares = [0.0] * 4 + [0.8] * 10 + [0.2] * 10
    assert masked == pytest.approx(shares, abs=0.04)
    # E[1/t x t] = 1 a token; the deviation of a mean of 4000 is below 2 / 63
    assert summed == pytest.approx([0.0] * 4 + [1.0] * 20, abs=0.15)


def test_complementary_blocks_cover_an_answer() -> None:
    how = rules(mask_count="exact", complementary=True)
    levels = Levels.of("linear", [0.8, 0.2], [14, 10])
    item = document_item(np.arange(24, dtype=np.int32), np.arange(24) >= 4, 4)
    first, second = corruptions(item, levels, how.noise, how.loss)
    assert sorted([*first.masked, *second.masked]) == list(range(4, 24))
    assert [np.count_nonzero(first.masked < 14), np.count_nonzero(first.masked >= 14)] == [8, 2]
    assert list(second.levels.probability) == pytest.approx([0.2, 0.8])
    # w(t) p(t) / p(t'): 1.25 x .8 / .2 and 5 x .2 / .8
    assert np.unique(second.weight).tolist() == pytest.approx([1.25, 5.0])
