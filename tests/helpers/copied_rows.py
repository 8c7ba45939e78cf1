"""Batches whose documents are rows with noisy copies, without the objective that makes them."""

from __future__ import annotations

import numpy as np
import torch

from plugin.batch import Batch, Copies

MASK = 4


def copied_rows(
    documents: list[tuple[int, int]],
    *,
    size: int = 4,
    views: int = 2,
    causal: bool = False,
    vocabulary: int = 40,
    seed: int = 0,
) -> Batch:
    """Return documents of (prompt, answer) tokens, with `views` copies of the answer's blocks.

    Half of a copy's answer is masked. `causal`: the clean tokens see those before them alone.
    """
    rng = np.random.default_rng(seed)
    places, copies, limits, shown, wanted, hidden, lengths = [], [], [], [], [], [], []
    for prompt, answer in documents:
        T, first = prompt + answer, prompt // size * size
        ids, place = rng.integers(5, vocabulary, T), np.arange(T)
        tail = place[first:]
        clean = place + 1 if causal else (place // size + 1) * size
        masked = (rng.random((views, T - first)) < 0.5) & (tail >= prompt)
        places.append(np.concatenate([place, *[tail] * views]))
        copies.append(np.concatenate([0 * place, *(0 * tail + 1 + view for view in range(views))]))
        limits.append(np.concatenate([clean, *[tail // size * size] * views]))
        shown.append(np.concatenate([ids, *np.where(masked, MASK, ids[first:])]))
        wanted.append(ids[places[-1]])
        hidden.append(np.concatenate([np.zeros(T, dtype=bool), *masked]))
        lengths.append(shown[-1].size)
    masked = torch.from_numpy(np.flatnonzero(np.concatenate(hidden)))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(
        ids=_joined(shown),
        cu_seqlens=torch.from_numpy(ends),
        position=_joined(places),
        document=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        masked=masked,
        target=_joined(wanted)[masked],
        weight=torch.ones(masked.shape[0]),
        longest=max(lengths),
        copies=Copies(copy=_joined(copies), limit=_joined(limits), source=masked),
    )


def _joined(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
