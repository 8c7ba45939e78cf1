"""Cutoffs and end fill of single documents; test_step_answers.py has them in steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny import CLS, SEP, document_item

from plugin.objectives.answers import EndFill, Item, cutoff_lengths

FILL = EndFill(policy="batch", block=4, max_length=64, end_ids=(SEP,), fill_id=SEP)
HOW, FINE, THANKS = 5, 6, 7


@pytest.mark.parametrize(
    ("policy", "block", "max_length", "filled"),
    [
        ("single", 4, 64, [7, 12, 9]),
        ("block", 4, 64, [7, 13, 12]),  # answers of 4, 7 and 1 tokens become 4, 8 and 4
        ("block", 5, 64, [8, 15, 13]),
        ("block", 8, 12, [11, 12, 12]),  # max_length cuts the filling, never the document
        ("block", 1, 64, [7, 12, 9]),
        ("batch", 4, 64, [12, 12, 12]),
    ],
)
def test_end_fill_lengths_of_three_documents(
    policy: str, block: int, max_length: int, filled: list[int]
) -> None:
    fill = replace(FILL, policy=policy, block=block, max_length=max_length)
    assert fill.lengths([7, 12, 9], [3, 5, 8]) == filled


def filled(ids: list[int]) -> Item:
    """Fill the document of five tokens to the eight of the longest of its step."""
    items = [
        document_item(np.array(each, np.int32), np.arange(len(each)) >= 3, 3)
        for each in (ids, [CLS, HOW, SEP, *[FINE] * 4, SEP])
    ]
    return FILL(items, 0)[0]


def test_end_fill_adds_supervised_end_tokens() -> None:
    item = filled([CLS, HOW, SEP, FINE, SEP])
    assert item.ids.tolist() == [CLS, HOW, SEP, FINE, SEP, SEP, SEP, SEP]
    assert item.ids.dtype == np.int32
    assert np.flatnonzero(item.supervised).tolist() == [3, 4, 5, 6, 7]
    assert item.fill == 3


def test_end_fill_leaves_a_cut_document_alone() -> None:
    item = filled([CLS, HOW, SEP, FINE, THANKS])
    assert item.ids.tolist() == [CLS, HOW, SEP, FINE, THANKS]
    assert item.supervised.size == 5


def draws(lengths, count=4000, **options):
    rng = np.random.default_rng(7)
    return np.array([cutoff_lengths(np.array(lengths), rng=rng, **options) for _ in range(count)])


def test_no_cutoff_keeps_every_length_and_its_argument():
    lengths = np.array([5, 9, 2])
    assert cutoff_lengths(
        lengths, perbatch=False, resp_ratio=0.0, rng=np.random.default_rng(0)
    ).tolist() == [5, 9, 2]
    cutoff_lengths(lengths, perbatch=True, resp_ratio=1.0, rng=np.random.default_rng(0))
    assert lengths.tolist() == [5, 9, 2]


def test_perbatch_cutoff_draws_each_length_equally_often():
    kept = draws([5, 9, 2], perbatch=True, resp_ratio=0.0)
    outcomes, counts = np.unique(kept, axis=0, return_counts=True)
    assert outcomes.tolist() == [[2, 2, 2], [5, 5, 2], [5, 9, 2]]
    assert (abs(counts / 4000 - 1 / 3) < 0.03).all()


def test_response_cutoff_takes_one_number_from_every_end():
    lengths = np.array([5, 9, 12])
    cut = lengths - draws(lengths, perbatch=False, resp_ratio=0.25)
    assert (cut == cut[:, :1]).all()  # the same number for all
    values, counts = np.unique(cut[:, 0], return_counts=True)
    assert values.tolist() == [0, 1, 2, 3, 4]  # 0 where the coin says no, else 1..shortest-1
    assert abs(counts[0] / 4000 - 0.75) < 0.03
    assert (abs(counts[1:] / 4000 - 0.25 / 4) < 0.015).all()


def test_both_cutoffs_combine():
    """dLLM makes them exclusive.

    Here [3, 8] can become [1, 1]: first both to 3, then 2 off both.
    """
    kept = {tuple(row) for row in draws([3, 8], perbatch=True, resp_ratio=1.0).tolist()}
    assert kept == {(2, 2), (1, 1), (2, 7), (1, 6)}


def test_cutoffs_keep_the_only_response_token():
    assert (draws([1, 8], perbatch=True, resp_ratio=1.0) >= 1).all()
    assert draws([1, 8], perbatch=False, resp_ratio=1.0).tolist() == [[1, 8]] * 4000
    assert draws([1], perbatch=True, resp_ratio=1.0, count=10).tolist() == [[1]] * 10


def test_cutoffs_ignore_documents_without_a_response():
    kept = draws([0, 6, 4], perbatch=True, resp_ratio=0.5)
    assert (kept[:, 0] == 0).all()
    assert (kept[:, 1:] >= 1).all()
    assert draws([0, 0], perbatch=True, resp_ratio=1.0, count=3).tolist() == [[0, 0]] * 3
    assert draws([], perbatch=True, resp_ratio=1.0, count=2).shape == (2, 0)
