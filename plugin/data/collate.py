"""Collation: noised documents laid end to end as one flat micro-batch.

S documents, N tokens of a batch, M masked tokens; T tokens of a document, of a row with its noisy
copies under block diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Batch, Copies


class CopiesOfRow(Protocol):
    """The noisy copies behind a clean document, see objectives/block.py."""

    @property
    def position(self) -> NDArray[np.int64]: ...  # [T] of each token in the document
    @property
    def copy(self) -> NDArray[np.int64]: ...  # [T]
    @property
    def limit(self) -> NDArray[np.int64]: ...  # [T]
    @property
    def source(self) -> NDArray[np.int64]: ...  # [M]


class Noised(Protocol):
    """A noised document, see objectives."""

    @property
    def noisy(self) -> NDArray[np.int32]: ...
    @property
    def masked(self) -> NDArray[np.int64]: ...
    @property
    def weight(self) -> NDArray[np.float32]: ...
    @property
    def copies(self) -> CopiesOfRow | None: ...
    @property
    def unit(self) -> NDArray[np.float32] | None: ...


def lay_out(documents: Sequence[NDArray[np.int32]], noised: Sequence[Noised]) -> Batch:
    """Lay documents (their true ids, at least one document) and their noise end to end.

    All have noisy copies, or none has.
    """
    lengths = np.array([noise.noisy.size for noise in noised], dtype=np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = cu_seqlens[:-1]
    places = [
        np.arange(noise.noisy.size) if noise.copies is None else noise.copies.position
        for noise in noised
    ]
    masked = [start + noise.masked for start, noise in zip(starts, noised, strict=True)]
    target = [
        ids[place[noise.masked]]
        for ids, place, noise in zip(documents, places, noised, strict=True)
    ]
    return Batch(
        ids=_joined([noise.noisy for noise in noised]),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        position=_joined(places),
        document=torch.from_numpy(np.repeat(np.arange(lengths.size), lengths)),
        masked=_joined(masked),
        target=_joined(target),
        weight=torch.from_numpy(np.concatenate([noise.weight for noise in noised])),
        longest=int(lengths.max()),
        copies=_copies(starts, [noise.copies for noise in noised]),
        unit=torch.from_numpy(np.concatenate([_unit(noise) for noise in noised])),
    )


def _unit(noise: Noised) -> NDArray[np.float32]:
    return np.ones_like(noise.weight) if noise.unit is None else noise.unit


def _copies(starts: NDArray[np.int64], rows: Sequence[CopiesOfRow | None]) -> Copies | None:
    known = [row for row in rows if row is not None]
    if not known:
        return None
    assert len(known) == len(rows), "noisy copies of some documents alone"
    return Copies(
        copy=_joined([row.copy for row in known]),
        limit=_joined([row.limit for row in known]),
        source=_joined([start + row.source for start, row in zip(starts, known, strict=True)]),
    )


def _joined(parts: Sequence[NDArray[np.integer]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
