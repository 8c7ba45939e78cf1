"""Collation: noised documents laid end to end as one flat micro-batch.

S documents, N tokens of a batch, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Batch


class Noised(Protocol):
    """A noised document, see objectives."""

    @property
    def noisy(self) -> NDArray[np.int32]: ...
    @property
    def masked(self) -> NDArray[np.int64]: ...
    @property
    def weight(self) -> NDArray[np.float32]: ...


def lay_out(documents: Sequence[NDArray[np.int32]], noised: Sequence[Noised]) -> Batch:
    """Lay documents (their true ids, at least one document) and their noise end to end."""
    lengths = np.array([ids.size for ids in documents], dtype=np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = cu_seqlens[:-1]
    noisy = np.concatenate([noise.noisy for noise in noised])
    masked = [start + noise.masked for start, noise in zip(starts, noised, strict=True)]
    target = [ids[noise.masked] for ids, noise in zip(documents, noised, strict=True)]
    return Batch(
        ids=torch.from_numpy(noisy.astype(np.int64)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        position=torch.from_numpy(np.arange(cu_seqlens[-1]) - np.repeat(starts, lengths)),
        document=torch.from_numpy(np.repeat(np.arange(lengths.size), lengths)),
        masked=torch.from_numpy(np.concatenate(masked)),
        target=torch.from_numpy(np.concatenate(target).astype(np.int64)),
        weight=torch.from_numpy(np.concatenate([noise.weight for noise in noised])),
        longest=int(lengths.max()),
    )
