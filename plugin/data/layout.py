"""The layout of a step: documents dealt to ranks, split into micro-batches, laid end to end in flat
arrays.

S documents, N tokens of a batch, M masked tokens. A layout decides where a document is computed,
never what is computed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..base.errors import JobError, Problem
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
    """Documents (by place in the step) for each rank: longest first, each to the rank with the
    fewest tokens so far.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for place in _longest_first(range(len(lengths)), lengths):
        rank = min(range(ranks), key=lambda rank: (tokens[rank], rank))
        hands[rank].append(place)
        tokens[rank] += lengths[place]
    return hands


@dataclass(frozen=True)
class Layout:
    """How a rank's documents become micro-batches."""

    packed: bool = False
    tokens: int | None = (
        None  # most tokens of a micro-batch, padding included; None: see token_budget
    )


PADDED = Layout()

# A packed micro-batch of `auto` grows no further: more gains nothing on a CPU, and a GPU is busy
# with less.
AUTO_TOKENS = 32_768


def token_budget(lengths: Sequence[int], batch_size: int) -> int:
    """Tokens of an automatic micro-batch: what the padded rectangle would have held, so that
    packing never needs more memory.
    """
    longest = max(lengths)
    return max(longest, min(batch_size * longest, AUTO_TOKENS))


def micro_batches(
    places: Sequence[int], lengths: Sequence[int], batch_size: int, layout: Layout = PADDED
) -> list[list[int]]:
    """Documents (by place in the step) of each micro-batch, longest first.

    Padded: at most `batch_size` neighbours in length, so that a rectangle wastes little. Packed: as
    many as fit. Raises JobError (exit 2) naming tokens_per_batch for a document that does not fit
    alone.
    """
    if not places:
        return []
    check_budget(max(lengths[place] for place in places), layout)
    if layout.packed:
        budget = layout.tokens or token_budget([lengths[place] for place in places], batch_size)
        return best_fit(places, lengths, budget)
    groups: list[list[int]] = []
    for place in _longest_first(places, lengths):
        full = not groups or len(groups[-1]) == batch_size
        if full or (
            layout.tokens and (len(groups[-1]) + 1) * lengths[groups[-1][0]] > layout.tokens
        ):
            groups.append([])
        groups[-1].append(place)
    return groups


def check_budget(longest: int, layout: Layout) -> None:
    """Raises JobError (exit 2) when a document of `longest` tokens does not fit into a
    micro-batch.
    """
    if layout.tokens and longest > layout.tokens:
        fix = "Raise tokens_per_batch, or lower max_length."
        raise JobError(
            Problem(
                "tokens_per_batch",
                f"at least the {longest} tokens of the longest document",
                str(layout.tokens),
                fix,
            )
        )


def best_fit(places: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Best fit decreasing: each document, longest first, into the fullest pack that has room; at
    most 11/9 of the fewest packs.

    Source: Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing
    algorithms".
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), ascending
    for place in _longest_first(places, lengths):
        at = bisect_left(room, (lengths[place], -1))
        left, pack = room.pop(at) if at < len(room) else (budget, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(place)
        insort(room, (left - lengths[place], pack))
    return packs


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
        masked=torch.from_numpy(
            np.concatenate([start + one.masked for start, one in zip(starts, noised, strict=True)])
        ),
        target=torch.from_numpy(
            np.concatenate(
                [ids[one.masked] for ids, one in zip(documents, noised, strict=True)]
            ).astype(np.int64)
        ),
        weight=torch.from_numpy(np.concatenate([one.weight for one in noised])),
        longest=int(lengths.max()),
    )
