"""Partition of a step: documents shared among ranks and grouped into micro-batches.

A layout decides where a document is computed, never the result. Documents are named by their
place in the step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from ..base.errors import JobError, Problem

# Upper limit of an automatic packed micro-batch, in tokens. A CPU gains nothing from more, and
# fewer tokens already keep a GPU busy.
AUTO_TOKENS = 32_768


@dataclass(frozen=True)
class Layout:
    """Rules that turn a rank's documents into micro-batches."""

    packed: bool = False
    tokens: int | None = None  # limit of a micro-batch, padding included; None: see token_budget


PADDED = Layout()


def partition(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Assign documents, longest first, each to the rank with the fewest tokens so far.

    Returns the documents of each rank.
    """
    shards: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for place in _longest_first(range(len(lengths)), lengths):
        rank = min(range(ranks), key=lambda rank: (tokens[rank], rank))
        shards[rank].append(place)
        tokens[rank] += lengths[place]
    return shards


def token_budget(lengths: Sequence[int], batch_size: int) -> int:
    """Return the tokens of an automatic micro-batch.

    It is the size of the padded rectangle, so that packing never needs more memory than padding.
    """
    longest = max(lengths)
    return max(longest, min(batch_size * longest, AUTO_TOKENS))


def micro_batches(
    places: Sequence[int], lengths: Sequence[int], batch_size: int, layout: Layout = PADDED
) -> list[list[int]]:
    """Group the documents at `places` into micro-batches, longest first.

    A padded micro-batch holds at most `batch_size` documents of similar length, which keeps its
    padding small. A packed micro-batch holds as many documents as fit. Raises JobError (exit 2)
    for tokens_per_batch if a document does not fit alone.
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
    """Raise JobError (exit 2) if a document of `longest` tokens does not fit a micro-batch."""
    if layout.tokens and longest > layout.tokens:
        expected = f"at least the {longest} tokens of the longest document"
        fix = "Raise tokens_per_batch, or lower max_length."
        raise JobError(Problem("tokens_per_batch", expected, str(layout.tokens), fix))


def best_fit(places: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack documents by best fit decreasing: longest first, into the fullest pack with room.

    The number of packs is at most 11/9 of the minimum. Source: Johnson et al. 1974, "Worst-case
    performance bounds for simple one-dimensional packing algorithms".
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
