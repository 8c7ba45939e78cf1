"""Answers before the noise: cutoffs, end fill, block borders, splits and dropped prompts.

Each is a transform of a step's documents. A job's list of transforms is chosen once, in
assembly/rules.py. Every draw is seeded by (run seed, document, pass), or by the step's first
document for the cutoffs, so the layout of a step never changes it. T tokens of a document, S
documents of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .noise import generator

# Streams of a document's generator; 0 is for its mask and 1 for the mask of its tail.
_SPLIT, _DROP, _CUTOFF, _BLOCKS = 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class Item:
    """A document on its way into a step."""

    ids: NDArray[np.int32]  # [T]
    supervised: NDArray[np.bool_]  # [T]
    prompt: int  # tokens of the prompt
    index: int  # of the document in the data
    pass_: int
    ordinal: int  # of the document in the pass
    part: int = 0  # 1 for the tail of a text split in two
    fill: int = 0  # end tokens added
    cut: int = 0  # answer tokens removed
    dropped: int = 0  # first tokens that are hidden without being learned
    # [T] inverse of each token's chance to be shown; None: every token always is
    scale: NDArray[np.float64] | None = None
    left_out: int = 0  # supervised tokens that are not shown

    @property
    def learned(self) -> NDArray[np.bool_]:
        """Return [T] bool: the supervised tokens outside a dropped prompt."""
        if not self.dropped:
            return self.supervised
        return np.where(np.arange(self.ids.size) < self.dropped, False, self.supervised)


# (a step's items, the run's seed) -> the items that take their places
Transform = Callable[[list[Item], int], list[Item]]


@dataclass(frozen=True)
class Answers:
    """The transforms of a step's documents, in order; exactly one is the end fill."""

    transforms: tuple[Transform, ...]

    def transformed(self, items: list[Item], seed: int) -> list[Item]:
        for transform in self.transforms:
            items = transform(items, seed)
        return items

    def only(self, *kinds: type) -> Answers:
        """Keep the transforms of these classes."""
        return Answers(tuple(each for each in self.transforms if isinstance(each, kinds)))

    @property
    def fill(self) -> EndFill:
        return next(each for each in self.transforms if isinstance(each, EndFill))


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """Dream's cutoffs of answers, drawn once a step; see cutoff_lengths."""

    perbatch: bool
    ratio: float

    def __call__(self, items: list[Item], seed: int) -> list[Item]:
        first = items[0]
        rng = generator(seed, first.ordinal, first.pass_, _CUTOFF)
        lengths = np.array([item.ids.size - item.prompt for item in items])
        kept = cutoff_lengths(lengths, perbatch=self.perbatch, resp_ratio=self.ratio, rng=rng)
        # An answer keeps at least one token, so there is something to learn without the prompt too.
        return [
            replace(
                item,
                ids=item.ids[: item.prompt + keep],
                supervised=item.supervised[: item.prompt + keep],
                cut=length - keep,
            )
            for item, length, keep in zip(items, lengths.tolist(), kept.tolist(), strict=True)
        ]


def cutoff_lengths(
    response_lengths: NDArray[np.integer],
    *,
    perbatch: bool,
    resp_ratio: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return how many response tokens each document of a step keeps, int64 [S], at least 1 of each.

    perbatch: one document of the step is drawn, and longer responses are cut to the length of its
    response. resp_ratio: with this probability, one number drawn from U{1..shortest-1} is then cut
    from the end of *every* response, `shortest` being the shortest after the first cut. Nothing is
    cut where that is 1.

    Dream's own trainer applies both in this order too (dLLM one or the other). It differs in three
    ways. It draws per rank and micro-batch, not per step. After its per-batch cut it first fills
    short responses with visible, supervised EOS, so its `shortest` is the drawn length, and a short
    response loses only filling. A response of one token therefore stops its second cut only if it
    is the drawn response. Here the end fill comes after the cuts.
    """
    kept = np.array(response_lengths, dtype=np.int64)
    # A document without a response can neither be cut nor cut others to nothing.
    answered = kept > 0
    if not answered.any():
        return kept
    if perbatch:
        kept = np.minimum(kept, rng.choice(kept[answered]))
    if resp_ratio > 0 and rng.random() < resp_ratio:
        shortest = int(kept[answered].min())
        if shortest > 1:
            kept[answered] -= rng.integers(1, shortest)  # the upper end is exclusive
    return kept


@dataclass(frozen=True, kw_only=True)
class EndFill:
    """Supervised end tokens behind an answer: how a masked model learns where to stop.

    Policies: `single` adds none, `block` fills an answer to a multiple of `block` tokens, `grid` the
    document to one, `batch` fills it to the longest of the step. A cut answer, which does not end in one of `end_ids`, is
    not filled: end tokens there would teach stopping in the middle of a sentence.
    """

    policy: str  # single, block, grid, batch
    block: int
    max_length: int
    end_ids: tuple[int, ...]  # what may end an answer
    fill_id: int

    def __call__(self, items: list[Item], _seed: int) -> list[Item]:
        lengths = self.lengths([each.ids.size for each in items], [each.prompt for each in items])
        return [self._filled(item, length) for item, length in zip(items, lengths, strict=True)]

    def lengths(self, lengths: Sequence[int], prompts: Sequence[int]) -> list[int]:
        """Return the tokens of each document of a step once end tokens are added."""
        if self.policy == "single":
            return list(lengths)
        if self.policy == "batch":
            return [max(lengths)] * len(lengths)
        begins = [0] * len(lengths) if self.policy == "grid" else prompts
        full = [
            begin - (begin - length) // self.block * self.block
            for length, begin in zip(lengths, begins, strict=True)
        ]
        return [
            max(length, min(filled, self.max_length))
            for length, filled in zip(lengths, full, strict=True)
        ]

    def _filled(self, item: Item, length: int) -> Item:
        extra = length - item.ids.size
        if extra <= 0 or item.ids[-1] not in self.end_ids:
            return item
        return replace(
            item,
            ids=np.concatenate([item.ids, np.full(extra, self.fill_id, dtype=np.int32)]),
            supervised=np.concatenate([item.supervised, np.ones(extra, dtype=bool)]),
            fill=extra,
        )


@dataclass(frozen=True)
class BlockBorders:
    """Half of the time an answer ends at one of its block borders, uniformly drawn.

    Generation fills an answer block by block. A model that was only shown full answers reads their
    length off the canvas and squeezes a long one into the first block: measured, 5 of 8 long
    answers right without this, 8 of 8 with it. Tokens behind the border are missing from the
    canvas, those of the last block half of the time. Shown tokens weigh the inverse of their chance
    to be shown, so every token of an answer counts alike over the passes.
    """

    block: int

    def __call__(self, items: list[Item], seed: int) -> list[Item]:
        return [self._shown(item, seed) for item in items]

    def _shown(self, item: Item, seed: int) -> Item:
        length = item.ids.size
        answer = length - item.prompt
        blocks = -(-answer // self.block)
        if blocks < 2:
            return item
        rng = generator(seed, item.index, item.pass_, _BLOCKS)
        end = length
        if rng.random() >= 0.5:
            end = item.prompt + int(rng.integers(1, blocks)) * self.block
        # Block k of B, from 1, is in the full canvas and behind the borders k, ..., B - 1 of B - 1.
        block = np.concatenate([np.ones(item.prompt), np.arange(answer) // self.block + 1])
        chance = 0.5 + 0.5 * (blocks - block) / (blocks - 1)
        return replace(
            item,
            ids=item.ids[:end],
            supervised=item.supervised[:end],
            fill=max(0, item.fill - (length - end)),
            cut=item.cut + max(0, length - item.fill - end),
            scale=1 / chance[:end],
            left_out=int(np.count_nonzero(item.supervised[end:])),
        )


@dataclass(frozen=True, kw_only=True)
class LengthSplit:
    """SMDM's stochastic length: a share of the texts is split at a uniform length.

    The tail is a document of its own.
    """

    share: float
    start_id: int | None  # what opens a text

    def __call__(self, items: list[Item], seed: int) -> list[Item]:
        return [part for item in items for part in self._parts(item, seed)]

    def _parts(self, item: Item, seed: int) -> list[Item]:
        rng = generator(seed, item.index, item.pass_, _SPLIT)
        opening = 0 if self.start_id is None else 1
        if item.ids.size < opening + 3 or rng.random() >= self.share:
            return [item]
        at = int(rng.integers(opening + 1, item.ids.size - 1))
        tail_ids, tail = item.ids[at:], item.supervised[at:].copy()
        if self.start_id is None:
            tail[0] = False  # a document's first token is never masked
        else:  # the tail opens like any text, so that its first token can still be learned
            tail_ids = np.concatenate([np.array([self.start_id], dtype=np.int32), tail_ids])
            tail = np.concatenate([[False], tail])
        head = replace(item, ids=item.ids[:at], supervised=item.supervised[:at])
        return [head, replace(item, ids=tail_ids, supervised=tail, prompt=opening, part=1, cut=0)]


@dataclass(frozen=True)
class PromptDrop:
    """A share of the prompts is hidden and not learned: training for guidance (CFG)."""

    share: float

    def __call__(self, items: list[Item], seed: int) -> list[Item]:
        return [
            replace(item, dropped=item.prompt)
            if generator(seed, item.index, item.pass_, _DROP).random() < self.share
            else item
            for item in items
        ]
