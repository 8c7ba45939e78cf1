"""Collation: documents and noise as one flat batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from plugin.data.collate import lay_out
from plugin.objectives.masked import Corruption
from plugin.objectives.noise import Levels


def noised(noisy: list[int], masked: list[int], weight: list[float]) -> Corruption:
    return Corruption(
        noisy=np.array(noisy, np.int32),
        masked=np.array(masked, np.int64),
        weight=np.array(weight, np.float32),
        count=1.0,
        levels=Levels.of("linear", [0.5], [len(noisy)]),
    )


def test_batch_of_two_documents_worked_by_hand() -> None:
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


def test_units_lie_like_their_masked_tokens_and_are_one_without() -> None:
    first, second = noised([2, 50, 4, 4], [2, 3], [2.0, 2.0]), noised([2, 4, 3], [1], [0.25])
    first = replace(first, unit=np.array([0.5, 0.25], np.float32))
    batch = lay_out(
        [np.array([2, 50, 60, 3], np.int32), np.array([2, 70, 3], np.int32)], [first, second]
    )
    assert batch.unit is not None
    assert (batch.unit.tolist(), batch.unit.dtype) == ([0.5, 0.25, 1.0], torch.float32)


def test_batch_with_nothing_masked_is_valid() -> None:
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
        batch.unit,
    )
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert batch.unit is not None
    assert batch.longest == 2
