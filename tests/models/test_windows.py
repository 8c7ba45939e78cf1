"""Sliding windows of long documents in blocks: equal to a mask of all pairs, documents kept apart."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from plugin.batch import Batch
from plugin.models.attention import LONG, Segments, dense, loop

LENGTHS = (700, 700, LONG + 1, LONG, LONG - 1, 130, 5)
N = sum(LENGTHS)


def segments() -> Segments:
    none = torch.zeros(0, dtype=torch.long)
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    ends = torch.tensor([0, *accumulate(LENGTHS)])
    return Segments.of(
        Batch(document, ends, document, document, none, none, none.float(), max(LENGTHS)), "loop"
    )


def states(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, heads, N, 16, generator=generator, requires_grad=True) for heads in (4, 2, 2)
    ]


@pytest.mark.parametrize("reach", [64, 3, 127, 500, None])
def test_window_blocks_equal_a_mask_of_all_pairs(reach: int | None) -> None:
    inputs = states(1)
    found, expected = (way(*inputs, segments(), reach, 0.2) for way in (loop, dense))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(
        *(torch.autograd.grad(out, inputs, slope) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-5)


def test_window_blocks_keep_nan_within_its_document() -> None:
    """Keys and values of the second document are NaN; its neighbours do not change by one bit."""
    query, key, value = states(3)
    clean = loop(query, key, value, segments(), 64, 0.2)
    key, value = key.detach().clone(), value.detach().clone()
    key[:, :, 700:1400] = value[:, :, 700:1400] = torch.nan
    broken = loop(query, key, value, segments(), 64, 0.2)
    assert torch.equal(broken[:, :700], clean[:, :700])
    assert torch.equal(broken[:, 1400:], clean[:, 1400:])
    assert broken[:, 700:1400].isnan().all()
