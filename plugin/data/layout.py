"""The layout of a step: documents dealt to ranks, split into micro-batches, laid end to end in flat arrays.

S documents, N tokens of a batch, M masked tokens. A layout decides where a document is computed, never what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Batch


class Noised(Protocol):
    """What a corruption gives; see objectives."""

    @property
    def noisy(self) -> NDArray[np.int32]: ...
    @property
    def masked(self) -> NDArray[np.int64]: ...
    @property
    def weight(self) -> NDArray[np.float32]: ...


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Documents (by place in the step) for each rank: longest first, each to the rank with the fewest tokens so far."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for place in _longest_first(range(len(lengths)), lengths):
        rank = min(range(ranks), key=lambda rank: (tokens[rank], rank))
        hands[rank].append(place)
        tokens[rank] += lengths[place]
    return hands


def micro_batches(places: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Groups of at most `batch_size` documents of neighbouring length, so that a padded rectangle wastes little."""
    ordered = _longest_first(places, lengths)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def _longest_first(places: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(places, key=lambda place: (-lengths[place], place))


def lay_out(documents: Sequence[NDArray[np.int32]], noised: Sequence[Noised]) -> Batch:
    """Lay at least one document (its true ids) and its corruption end to end."""
    lengths = np.array([ids.size for ids in documents], dtype=np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = cu_seqlens[:-1]
    return Batch(
        ids=torch.from_numpy(np.concatenate([one.noisy for one in noised]).astype(np.int64)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        position=torch.from_numpy(np.arange(cu_seqlens[-1]) - np.repeat(starts, lengths)),
        document=torch.from_numpy(np.repeat(np.arange(lengths.size), lengths)),
        masked=torch.from_numpy(np.concatenate([start + one.masked for start, one in zip(starts, noised, strict=True)])),
        target=torch.from_numpy(
            np.concatenate([ids[one.masked] for ids, one in zip(documents, noised, strict=True)]).astype(np.int64)
        ),
        weight=torch.from_numpy(np.concatenate([one.weight for one in noised])),
        longest=int(lengths.max()),
    )
