"""Masked language modelling: chosen tokens, their replacement, weights and counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.tiny import MASK, document_item, rules

from plugin.objectives.masked import Corruption, corruptions, evenly
from plugin.objectives.noise import Levels, draw_times

ORDINARY = np.array([7, 11, 13, 500], np.int32)
IDS = np.arange(1000, 1200, dtype=np.int32)  # none of them is ordinary
RATE = 0.3


def drawn(
    index: int = 0, *, pass_: int = 0, length: int = 200, norm: str = "masked", **noise: object
) -> Corruption:
    """Return a document of `length` words, all but the first supervised, at mask rate RATE."""
    how = rules(norm=norm, weight=evenly, t_min=RATE, t_max=RATE, **noise)
    supervised = np.arange(length) > 0
    item = document_item(IDS[:length], supervised, 1, index=index, pass_=pass_)
    (t,) = draw_times(how.noise, pass_, [index], [index])
    (one,) = corruptions(item, Levels.of("linear", [t], [length]), how.noise, how.loss)
    return one


def test_every_document_has_the_one_time() -> None:
    how = rules(t_min=RATE, t_max=RATE).noise
    assert how.single_time == RATE
    assert rules().noise.single_time is None
    assert draw_times(how, 3, range(9), range(9)).tolist() == [RATE] * 9


def test_bernoulli_chooses_its_share() -> None:
    counts = [drawn(index).masked.size for index in range(500)]
    tokens = 500 * 199
    assert abs(sum(counts) - RATE * tokens) < 4 * math.sqrt(tokens * RATE * (1 - RATE))
    assert len(set(counts)) > 10


@pytest.mark.parametrize(("length", "count"), [(2, 1), (11, 3), (12, 4), (200, 60)])
def test_exact_chooses_the_rounded_up_count(length: int, count: int) -> None:
    """l = max(1, ceil(0.3 L)) of L = length - 1 supervised tokens, each of weight 1."""
    one = drawn(length=length, mask_count="exact")
    assert one.masked.size == count == one.count
    assert one.weight.tolist() == [1.0] * count


@pytest.mark.parametrize(
    ("norm", "count"), [("masked", 60), ("token", 199), ("sequence", 1), ("batch", 1)]
)
def test_each_norm_divides_by_its_count(norm: str, count: int) -> None:
    one = drawn(mask_count="exact", norm=norm)
    assert one.count == count
    each = 1 / 199 if norm == "sequence" else 1
    assert one.weight == pytest.approx(np.full(60, each))


def test_chosen_tokens_become_the_mask_and_others_stay() -> None:
    one = drawn()
    assert (one.noisy[one.masked] == MASK).all()
    rest = np.setdiff1d(np.arange(200), one.masked)
    assert np.array_equal(one.noisy[rest], IDS[rest])
    assert 0 not in one.masked, "it is not supervised"


def test_bert_replacement_has_the_published_shares() -> None:
    """Shares of 80, 10 and 10 %, each within four standard deviations."""
    kinds = {"mask": 0, "random": 0, "kept": 0}
    randoms: list[int] = []
    for index in range(400):
        one = drawn(index, ordinary=ORDINARY)
        shown, true = one.noisy[one.masked], IDS[one.masked]
        kinds["mask"] += int((shown == MASK).sum())
        kinds["kept"] += int((shown == true).sum())
        randoms += shown[(shown != MASK) & (shown != true)].tolist()
        rest = np.setdiff1d(np.arange(200), one.masked)
        assert np.array_equal(one.noisy[rest], IDS[rest])
    kinds["random"] = len(randoms)
    total = sum(kinds.values())
    for kind, share in (("mask", 0.8), ("random", 0.1), ("kept", 0.1)):
        assert abs(kinds[kind] - share * total) < 4 * math.sqrt(total * share * (1 - share)), kind
    assert set(randoms) == set(ORDINARY.tolist()), "all ordinary tokens, and no other one"


def test_replacement_depends_on_seed_document_and_pass_alone() -> None:
    first = drawn(3, pass_=1, ordinary=ORDINARY)
    assert np.array_equal(first.noisy, drawn(3, pass_=1, ordinary=ORDINARY, norm="token").noisy)
    assert np.array_equal(first.masked, drawn(3, pass_=1).masked), "the choice does not change"
    for other in (
        drawn(4, pass_=1, ordinary=ORDINARY),
        drawn(3, pass_=2, ordinary=ORDINARY),
        drawn(3, pass_=1, ordinary=ORDINARY, seed=8),
    ):
        assert not np.array_equal(first.noisy, other.noisy)
