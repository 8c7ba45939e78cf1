"""Block diffusion: blocks of a document denoised each on the clean blocks before it.

A document becomes a row: the clean document, and behind it noisy copies of those of its blocks that
hold a learned token. Blocks lie on a grid from the document's start. What a token of the row sees is
batch.sees. Arriola et al. 2025 (BD3LM, arXiv 2503.09573) for the loss; Efficient-DLM (arXiv
2512.14067) for masks by position; Stable-DiffCoder (arXiv 2601.15892) for the warm-up of the noise
and the clip; Fast-dLLM v2 (arXiv 2509.26328) for two complementary copies.

L tokens of a document, T of one noisy copy, B noised blocks, U learned tokens of these, M predicted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..base.grid import row_limit
from .answers import Item
from .masked import (
    Corruption,
    Loss,
    Objective,
    RowCopies,
    document_count,
    document_times,
    weight_by_time,
)
from .noise import EPSILON, IID_TIMES, Levels, Noise, generator, time_at

# Stream of the generator of a step's first document: times of all blocks of the step.
_TIMES = 8
AT_ONCE = 4096  # documents whose rows are counted at once
FIRST_NOISE = 1e-3  # highest time of the first step of a warm-up

Schedule = tuple[tuple[int, int], ...]  # (tokens of the run, size of a block from there on)


class Blocked(Protocol):
    """The parameters of block diffusion."""

    @property
    def block_size(self) -> object: ...  # a number by now
    @property
    def block_views(self) -> int: ...
    @property
    def block_shift(self) -> bool: ...
    @property
    def block_schedule(self) -> str: ...
    @property
    def noise_warmup_steps(self) -> int: ...
    @property
    def mask_half_life(self) -> float: ...
    @property
    def clean_context(self) -> str: ...
    @property
    def ar_loss_weight(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Noising of a document's blocks in copies behind it; see objectives.masked.Noising."""

    size: int  # tokens of a block
    views: int = 1  # noisy copies; two mask each learned token once, and weigh 1
    shift: bool = False  # state i - 1 predicts token i
    causal: bool = False  # clean tokens see those before them and themselves
    half_life: float = 0.0  # share of a block in which the odds of a mask halve; 0: all are equal
    ar_weight: float = 0.0  # of next-token prediction on the clean document
    warmup: int = 0  # steps over which the highest time rises
    schedule: Schedule = ()  # sizes by the tokens of the run
    highest: float | None = None  # time of a step of the warm-up, whose tokens weigh 1
    evaluates: bool = False  # by the bound: uniform masks of exact counts, a time for each document

    @property
    def copies(self) -> int:
        return self.views

    def at(self, step: int, tokens: int) -> Blocks:
        sizes = [size for begin, size in self.schedule if begin <= tokens]
        rising = FIRST_NOISE + (1 - FIRST_NOISE) * step / max(1, self.warmup)
        return replace(
            self,
            size=sizes[-1] if sizes else self.size,
            highest=rising if step < self.warmup else None,
        )

    def held_out(self) -> Blocks:
        """Return the noising whose loss is the bound, whatever the run adds to its own."""
        return replace(self, views=1, half_life=0.0, ar_weight=0.0, highest=None, evaluates=True)

    def predicted(self, share: float) -> float:
        return (share if self.views == 1 else 1.0) + (1.0 if self.ar_weight else 0.0)

    def row_tokens(
        self,
        lengths: NDArray[np.int64],
        supervised: NDArray[np.bool_],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        shown = np.zeros_like(lengths)
        for start in range(0, lengths.size, AT_ONCE):
            part = slice(start, min(start + AT_ONCE, lengths.size))
            begin, end = offsets[part.start], offsets[part.stop]
            shown[part] = self._noisy_tokens(
                lengths[part], supervised[begin:end], offsets[start : part.stop] - begin
            )
        return lengths + self.views * shown

    def _noisy_tokens(
        self,
        lengths: NDArray[np.int64],
        supervised: NDArray[np.bool_],
        begins: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Return the tokens [S] of one noisy copy of each document; the last block may be short."""
        learned = np.flatnonzero(supervised)
        document = np.searchsorted(begins, learned, side="right") - 1
        block = (learned - begins[document]) // self.size
        first = np.ones(learned.size, dtype=bool)
        first[1:] = (np.diff(document) != 0) | (np.diff(block) != 0)
        document, begin = document[first], block[first] * self.size
        tokens = np.minimum(self.size, lengths[document] - begin)
        return np.bincount(document, weights=tokens, minlength=lengths.size).astype(np.int64)

    # --- levels

    def learned(self, item: Item) -> NDArray[np.int64]:
        """Return the places [U] of the learned tokens; a shift has no state for the first token."""
        places = np.flatnonzero(item.learned)
        return places[places > 0] if self.shift else places

    def noised_blocks(self, item: Item) -> NDArray[np.int64]:
        """Return the numbers [B] of the blocks that hold a learned token."""
        return np.unique(self.learned(item) // self.size)

    def levels(self, items: Sequence[Item], noise: Noise) -> list[Levels]:
        """Draw a time for each noised block.

        stratified: over all noised blocks of the step, each in its own part of the interval, in an
        order seeded by the step's first document.
        """
        if self.evaluates:
            times = document_times(items, noise)
            return [self.level(item, noise, t) for item, t in zip(items, times, strict=True)]
        counts = [self.noised_blocks(item).size for item in items]
        if noise.t_sampling == "stratified":
            first, blocks = items[0], sum(counts)
            rng = generator(noise.seed, first.ordinal, first.pass_, _TIMES)
            uniform = (rng.permutation(blocks) + rng.random(blocks)) / max(1, blocks)
            each = np.split(uniform, np.cumsum(counts)[:-1])
        else:
            each = [
                generator(noise.seed ^ IID_TIMES, item.index, item.pass_, item.part).random(count)
                for item, count in zip(items, counts, strict=True)
            ]
        low, high = max(noise.t_min, EPSILON), noise.t_max
        if self.highest is not None:
            low, high = 0.0, min(self.highest, high)
        return [
            self._levels(item, noise, (low + (high - low) * u).tolist())
            for item, u in zip(items, each, strict=True)
        ]

    def level(self, item: Item, noise: Noise, t: float) -> Levels:
        return self._levels(item, noise, [t] * self.noised_blocks(item).size)

    def _levels(self, item: Item, noise: Noise, times: Sequence[float]) -> Levels:
        blocks = self.noised_blocks(item)
        if not blocks.size:  # nothing to learn: a copy without tokens
            return Levels.of(noise.schedule, [EPSILON], [0])
        ends = np.minimum((blocks + 1) * self.size, item.ids.size)
        return Levels.of(noise.schedule, times, (ends - blocks * self.size).tolist())

    # --- rows

    def corrupt(self, item: Item, levels: Levels, noise: Noise, loss: Loss) -> list[Corruption]:
        """Return the row of a document, all of its noisy copies in it."""
        rng = generator(noise.seed, item.index, item.pass_, item.part)
        places, blocks = self.learned(item), self.noised_blocks(item)
        block = np.searchsorted(blocks, places // self.size)  # [U]
        shown = np.flatnonzero(np.isin(np.arange(item.ids.size) // self.size, blocks))  # [T]
        count = "exact" if self.evaluates else noise.mask_count
        drawn = draw_masks(block, blocks.size, levels, count, self.half_life, rng)
        if count == "bernoulli" and not self.half_life:
            levels = clipped(levels, np.bincount(block, minlength=len(levels.t)), noise.schedule)
        first = np.zeros(shown.size, dtype=bool)
        first[np.searchsorted(shown, places[drawn.masked])] = True
        masks = [first]
        if self.views == 2:
            second = np.zeros(shown.size, dtype=bool)
            second[np.searchsorted(shown, places[~drawn.masked])] = True
            masks.append(second)
        weights = np.ones(shown.size)
        if self.views == 1 and self.highest is None:
            weights = loss.weight(first, levels, drawn.factors)
        return [self._row(item, shown, masks, weights, levels, noise, loss)]

    def _row(
        self,
        item: Item,
        shown: NDArray[np.int64],
        masks: Sequence[NDArray[np.bool_]],
        weights: NDArray[np.float64],
        levels: Levels,
        noise: Noise,
        loss: Loss,
    ) -> Corruption:
        """Lay out the clean document and its noisy copies, whose places `shown` [T] are masked as
        `masks` [T] say.
        """
        place = np.arange(item.ids.size)
        position = np.concatenate([place, *[shown] * self.views])
        copy = np.repeat(
            np.arange(self.views + 1), [item.ids.size, *[shown.size] * self.views]
        ).astype(np.int64)
        limit = row_limit(position, copy > 0, self.size, causal=self.causal)
        hidden = np.concatenate([np.zeros(item.ids.size, dtype=bool), *masks])
        masked = np.flatnonzero(hidden)
        source = masked
        if self.shift:  # within a block its own copy, before it the clean document
            opens = position[masked] % self.size == 0
            source = np.where(opens, position[masked], masked) - 1
        weight = np.tile(weights, self.views)[hidden[item.ids.size :]]
        after = self._next_tokens(item)
        length = self.learned(item).size
        divisor = max(length, 1) if loss.norm == "sequence" else 1
        return Corruption(
            noisy=np.where(hidden, np.int32(noise.mask_id), item.ids[position]),
            masked=np.concatenate([after, masked]),
            weight=(np.concatenate([np.full(after.size, self.ar_weight), weight]) / divisor).astype(
                np.float32
            ),
            count=document_count(loss.norm, length, float(masked.size)),
            levels=levels,
            unit=(np.repeat([0.0, 1.0], [after.size, masked.size]) / divisor).astype(np.float32),
            copies=RowCopies(
                position=position,
                copy=copy,
                limit=limit,
                source=np.concatenate([after - 1, source]),
                pairs=_pairs(copy, limit, item.ids.size, levels, self.views),
            ),
        )

    def _next_tokens(self, item: Item) -> NDArray[np.int64]:
        """Return the places of the clean document that are predicted from the state before them."""
        learned = np.flatnonzero(item.learned)
        return learned[learned > 0] if self.ar_weight else learned[:0]


def _pairs(
    copy: NDArray[np.int64], limit: NDArray[np.int64], length: int, levels: Levels, views: int
) -> int:
    """Count the pairs of a row that attend: clean tokens below the limit, and the own block."""
    own = views * sum(tokens * tokens for tokens in levels.tokens)
    return int(np.minimum(limit, length).sum()) + own


@dataclass(frozen=True)
class Drawn:
    masked: NDArray[np.bool_]  # [U]
    factors: tuple[float, ...]  # [B] that keep the expected loss, see noise.draw_mask


def draw_masks(
    block: NDArray[np.int64],
    blocks: int,
    levels: Levels,
    mask_count: str,
    half_life: float,
    rng: np.random.Generator,
) -> Drawn:
    """Draw the masked ones of a document's learned tokens; `block` [U] is the block of each.

    At least one token of each block is masked. With a half-life h, l = max(1, round(p L')) of the L'
    learned tokens of a block are drawn without replacement, token i with the weight
    exp(b (1 - p) i), b = ln 2 / (h L'): later tokens first (Efficient-DLM, equation 2; Gumbel
    top-l). Without one, exact draws l = max(1, ceil(p L')) evenly. bernoulli draws each token with
    the clipped probability (see `clipped`), and one evenly where none was drawn.
    """
    sizes = np.bincount(block, minlength=blocks)  # [B] L'
    probability = np.array(levels.probability[:blocks])
    begin = np.cumsum(sizes) - sizes
    if mask_count == "bernoulli" and not half_life:
        clip = np.minimum(1.0, np.maximum(probability, 1 / np.maximum(sizes, 1)))
        masked = rng.random(block.size) < clip[block]
        forced = begin + np.floor(rng.random(blocks) * sizes).astype(np.int64)
        none = np.bincount(block, weights=masked, minlength=blocks) == 0
        masked[forced[none]] = True
        return Drawn(masked, (1.0,) * len(levels.t))
    wanted = probability * sizes
    rounded = np.floor(wanted + 0.5) if half_life else np.ceil(wanted - 1e-9)
    count = np.clip(rounded, 1, sizes)
    slope = np.zeros(blocks)
    if half_life:
        slope = math.log(2) / (half_life * sizes) * (1 - probability)
    index = np.arange(block.size) - begin[block]
    score = slope[block] * index + rng.gumbel(size=block.size)
    order = np.lexsort((-score, block))  # blocks stay together, each with its highest first
    masked = np.zeros(block.size, dtype=bool)
    masked[order] = index < count[block]
    return Drawn(masked, tuple((wanted / count).tolist()) if blocks else (1.0,))


def clipped(levels: Levels, sizes: NDArray[np.int64], schedule: str) -> Levels:
    """Return levels at which a block of L' = `sizes` [B] learned tokens has one mask on average.

    The probability is at least 1 / L' (Stable-DiffCoder, section 3.3, whose blocks are learned in
    full).
    """
    least = [min(1.0, 1 / max(1, size)) for size in sizes.tolist()]
    pairs = list(zip(levels.probability, levels.t, least, strict=True))
    return replace(
        levels,
        probability=tuple([max(probability, low) for probability, _, low in pairs]),
        t=tuple(
            [t if probability >= low else time_at(schedule, low) for probability, t, low in pairs]
        ),
    )


def read_schedule(text: str) -> Schedule:
    """Return the sizes of a `block_schedule` that config/rules/blocks.py has checked."""
    return tuple((begin, size) for begin, size in json.loads(text or "[]"))


def blocks_of(params: Blocked) -> Blocks:
    """Return the noising of a job."""
    assert isinstance(params.block_size, int), "block_size auto is chosen before"
    return Blocks(
        size=params.block_size,
        views=params.block_views,
        shift=params.block_shift,
        causal=params.clean_context == "causal",
        half_life=params.mask_half_life,
        ar_weight=params.ar_loss_weight,
        warmup=params.noise_warmup_steps,
        schedule=read_schedule(params.block_schedule),
    )


OBJECTIVE = Objective(method="block", weight=weight_by_time, noising=blocks_of)
