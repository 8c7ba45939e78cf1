"""The masked-diffusion loss: what a model of known logits costs under every norm and schedule, from
masks alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers.tiny import MASK, noised, rules

from plugin.data.steps import Slot
from plugin.objectives.mdlm import Corruption
from plugin.objectives.noise import EPSILON, Noise, draw_times
from plugin.training.step import Item, corruptions

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


def test_one_masked_token_at_half_time_with_two_likely_words_costs_two_ln_two() -> None:
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


def test_masks_are_functions_of_seed_document_and_pass_alone() -> None:
    supervised = [True] * 64
    start = one(supervised, index=3, pass_=2)
    assert np.array_equal(start.masked, one(supervised, index=3, pass_=2, norm="batch").masked)
    for changed in (
        one(supervised, index=4, pass_=2),
        one(supervised, index=3, pass_=1),
        one(supervised, index=3, pass_=2, seed=6),
    ):
        assert not np.array_equal(start.masked, changed.masked)


def test_more_time_only_adds_masks() -> None:
    masks = [set(one([True] * 50, t, index=8).masked.tolist()) for t in (0.2, 0.5, 0.8)]
    assert masks[0] < masks[1] < masks[2]


@pytest.mark.parametrize(
    ("norm", "weight", "count"),
    [("token", 2.0, 4.0), ("sequence", 0.5, 1.0), ("batch", 2.0, 1.0), ("masked", 2.0, 2.0)],
)
def test_every_norm_of_a_document_of_four_answer_tokens_at_half_time(
    norm: str, weight: float, count: float
) -> None:
    drawn = one([False] * 6 + [True] * 4, norm=norm, mask_count="exact")
    assert drawn.masked.size == 2
    assert drawn.weight.tolist() == [weight, weight]
    assert drawn.count == count


@cache
def epoch(
    schedule: str, norm: str, mask_count: str, t_sampling: str, documents: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weighted loss [S] under uniform logits and count [S] of each document, and their mean
    supervised length.
    """
    lengths = np.random.default_rng(1).integers(1, 40, size=documents)
    noise = Noise(17, schedule=schedule, mask_count=mask_count, t_sampling=t_sampling)
    times = draw_times(noise, 0, range(documents), range(documents))
    how = replace(rules(schedule=schedule, norm=norm), noise=noise)
    losses, counts = np.zeros(documents), np.zeros(documents)
    ids, supervised = np.arange(42, dtype=np.int32), np.arange(42) >= 2
    for index, (t, length) in enumerate(zip(times, lengths, strict=True)):
        document = ids[: length + 2], supervised[: length + 2]
        (drawn,) = corruptions(Item(*document, 2, Slot(0, index, index)), float(t), how)
        losses[index], counts[index] = drawn.weight.sum(dtype=np.float64) * UNIFORM, drawn.count
    return losses, counts, float(lengths.mean())


# E[w(t) p(t)] and E[p(t)] over t in [eps, 1).
WEIGHTED = {"linear": 1.0, "cosine": (1 - math.sin(math.pi * EPSILON / 2)) / (1 - EPSILON)}
PROBABILITY = {
    "linear": (1 + EPSILON) / 2,
    "cosine": 2 / math.pi * math.cos(math.pi * EPSILON / 2) / (1 - EPSILON),
}


def expected(schedule: str, norm: str, mean_length: float) -> float:
    """Nats in closed form; linear: ln V by tokens and by documents' own tokens, about 2 ln V by
    masked tokens.
    """
    per_token = WEIGHTED[schedule] * UNIFORM
    return {"batch": per_token * mean_length, "masked": per_token / PROBABILITY[schedule]}.get(
        norm, per_token
    )


@pytest.mark.parametrize(
    ("schedule", "norm"),
    [
        *(("linear", norm) for norm in ("token", "sequence", "batch", "masked")),
        ("cosine", "token"),
        ("cosine", "masked"),
    ],
)
def test_uniform_logits_cost_what_the_formula_says(schedule: str, norm: str) -> None:
    losses, counts, mean_length = epoch(schedule, norm, "bernoulli", "stratified", DOCUMENTS)
    loss = losses.sum() / counts.sum()
    residual = losses - loss * counts
    standard_error = math.sqrt((residual**2).sum()) / counts.sum()
    wanted = expected(schedule, norm, mean_length)
    assert abs(loss - wanted) < 4 * standard_error
    assert standard_error < 0.03 * wanted, "or the line above says nothing"


@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_exact_counts_make_every_document_cost_ln_v_under_linear_noise(norm: str) -> None:
    losses, counts, _ = epoch("linear", norm, "exact", "stratified", 4000)
    assert losses / counts == pytest.approx(np.full(4000, UNIFORM), rel=1e-6)


def test_exact_counts_leave_cosine_noise_only_the_error_of_its_times() -> None:
    losses, counts, mean_length = epoch("cosine", "sequence", "exact", "stratified", 4000)
    # A low-discrepancy mean over S times errs by about log(S) / S.
    assert losses.sum() / counts.sum() == pytest.approx(
        expected("cosine", "sequence", mean_length), rel=3e-3
    )


def test_masked_norm_of_linear_noise_tends_to_two_ln_v() -> None:
    assert expected("linear", "masked", 20.0) == pytest.approx(2 * UNIFORM, rel=2e-3)


def test_stratified_times_take_most_of_the_noise_of_times_out_of_a_step() -> None:
    spread = {}
    for t_sampling in ("iid", "stratified"):
        losses, counts, _ = epoch("cosine", "sequence", "exact", t_sampling, 4000)
        spread[t_sampling] = (losses.reshape(-1, 40).sum(1) / counts.reshape(-1, 40).sum(1)).std()
    assert spread["stratified"] < 0.4 * spread["iid"]
