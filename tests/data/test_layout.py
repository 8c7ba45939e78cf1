"""Dealing, grouping and laying out documents: where one is computed, never what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plugin.data.layout import deal, lay_out, micro_batches
from plugin.objectives.masked import Corruption
from plugin.objectives.noise import Levels

LENGTHS = [3, 9, 1, 9, 4, 7, 2, 8, 5, 5, 6, 1]


def noised(noisy: list[int], masked: list[int], weight: list[float]) -> Corruption:
    return Corruption(
        noisy=np.array(noisy, np.int32),
        masked=np.array(masked, np.int64),
        weight=np.array(weight, np.float32),
        count=1.0,
        levels=Levels.of("linear", [0.5], [len(noisy)]),
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 12, 20])
def test_dealing_gives_every_document_to_one_rank_and_loads_them_evenly(ranks: int) -> None:
    hands = deal(LENGTHS, ranks)
    assert len(hands) == ranks
    assert sorted(place for hand in hands for place in hand) == list(range(len(LENGTHS)))
    tokens = [sum(LENGTHS[place] for place in hand) for hand in hands]
    assert max(tokens) - min(tokens) <= max(LENGTHS)


def test_dealing_worked_by_hand() -> None:
    # longest first: 9 -> rank 0, 8 -> rank 1, 3 -> rank 1 (8 < 9), 2 -> rank 0 (9 < 11), 2 -> rank
    # 0 (11 = 11)
    assert deal([2, 9, 3, 8, 2], 2) == [[1, 0, 4], [3, 2]]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12, 40])
def test_micro_batches_hold_every_place_once_and_neighbours_in_length(batch_size: int) -> None:
    places = [11, 0, 3, 7, 8, 1]
    groups = micro_batches(places, LENGTHS, batch_size)
    assert sorted(place for group in groups for place in group) == sorted(places)
    assert all(len(group) <= batch_size for group in groups)
    assert len(groups) == -(-len(places) // batch_size)
    flat = [LENGTHS[place] for group in groups for place in group]
    assert flat == sorted(flat, reverse=True)


def test_a_batch_of_two_documents_worked_by_hand() -> None:
    batch = lay_out(
        [np.array([2, 50, 60, 3], np.int32), np.array([2, 70, 3], np.int32)],
        [noised([2, 50, 4, 4], [2, 3], [2.0, 2.0]), noised([2, 4, 3], [1], [0.25])],
    )
    assert batch.ids.tolist() == [2, 50, 4, 4, 2, 4, 3]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.position.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.document.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch.masked.tolist() == [2, 3, 5]
    assert batch.target.tolist() == [60, 3, 70]
    assert batch.weight.tolist() == [2.0, 2.0, 0.25]
    assert (batch.longest, batch.documents) == (4, 2)
    assert batch.weight.dtype == torch.float32
    whole = (
        batch.ids,
        batch.cu_seqlens,
        batch.position,
        batch.document,
        batch.masked,
        batch.target,
    )
    assert {tensor.dtype for tensor in whole} == {torch.int64}


def test_a_batch_with_nothing_masked_is_still_a_batch() -> None:
    batch = lay_out([np.array([2, 3], np.int32)], [noised([2, 3], [], [])])
    assert (batch.masked.shape, batch.target.shape, batch.weight.shape) == ((0,), (0,), (0,))
    assert batch.masked.dtype == batch.target.dtype == torch.int64


def test_moving_a_batch_moves_every_tensor() -> None:
    batch = lay_out([np.array([2, 3], np.int32)], [noised([4, 3], [0], [1.0])]).to(
        torch.device("meta")
    )
    tensors = (
        batch.ids,
        batch.cu_seqlens,
        batch.position,
        batch.document,
        batch.masked,
        batch.target,
        batch.weight,
    )
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.longest == 2
