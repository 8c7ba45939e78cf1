"""One step, from its slots to this rank's micro-batches: cut, fill, split, noise, count, deal, lay
out.

Everything up to the count is a function of the step's list alone, computed alike on every rank: so
no rank has to ask another what the loss is divided by, and any split of a step gives the same loss.
Streamed packs are the exception: each rank knows its own alone, and `streaming.add_up` sums them. T
tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..batch import Batch
from ..data.chat import fill_with_end, filled_lengths
from ..data.collate import lay_out
from ..data.documents import Document, Documents
from ..data.packing import PADDED, Layout, micro_batches, partition
from ..data.steps import Slot
from ..objectives.dream import cutoff_lengths
from ..objectives.mdlm import Corruption, Weigh, corrupt
from ..objectives.noise import (
    EPSILON,
    Noise,
    draw_mask,
    draw_times,
    generator,
    mask_probability,
    time_at,
)

# Streams of a document's generator, besides 0 for its mask and 1 for the mask of its tail.
_SPLIT, _DROP, _CUTOFF, _BLOCKS = 2, 3, 4, 5


@dataclass(frozen=True)
class StepRules:
    """What turns documents into noised batches: settings of the run."""

    noise: Noise
    weigh: Weigh
    norm: str
    mask_id: int
    end_ids: tuple[int, ...]  # what may end an answer
    fill_id: int  # what fills the space behind it
    start_id: int | None
    eos_policy: str  # single, block, batch
    eos_block: int
    max_length: int
    perbatch_cutoff: bool = False
    resp_cutoff_ratio: float = 0.0
    complementary: bool = False
    stochastic_length: float = 0.0
    prompt_drop: float = 0.0
    shows_blocks: bool = True  # under eos_policy block, see _show_blocks

    def undisturbed(self) -> StepRules:
        """Every document whole and once: no cutoffs, borders, pairs or splits, no prompt
        dropped.
        """
        return replace(
            self,
            shows_blocks=False,
            perbatch_cutoff=False,
            resp_cutoff_ratio=0.0,
            complementary=False,
            stochastic_length=0.0,
            prompt_drop=0.0,
        )


@dataclass(frozen=True)
class Piece:
    """One micro-batch and what is known of its documents."""

    batch: Batch
    documents: tuple[int, ...]  # index of each in the Documents
    corruptions: tuple[Corruption, ...]


@dataclass(frozen=True)
class Step:
    pieces: tuple[Piece, ...]  # this rank's
    count: float  # what the whole step's loss is divided by, all ranks together
    masked: int  # masked tokens of the whole step
    lengths: tuple[int, ...]  # tokens of each document of the whole step, end fill included
    supervised: int
    cut: int  # answer tokens that cutoffs and block borders removed
    fill: int = 0  # end tokens among the lengths that no document holds

    @property
    def tokens(self) -> int:
        """Tokens that the data holds."""
        return sum(self.lengths) - self.fill


@dataclass(frozen=True)
class Item:
    """A document on its way into the step. `part` 1 is the tail of one cut in two."""

    ids: NDArray[np.int32]  # [T]
    supervised: NDArray[np.bool_]  # [T]
    prompt: int
    slot: Slot
    part: int = 0
    fill: int = 0  # end tokens added
    scale: NDArray[np.float64] | None = (
        None  # [T] inverse of each token's chance to be shown; None: all are, always
    )
    left_out: int = 0  # supervised tokens that are not shown


def build_step(
    slots: Sequence[Slot],
    documents: Documents,
    rules: StepRules,
    *,
    batch_size: int,
    layout: Layout = PADDED,
    rank: int = 0,
    ranks: int = 1,
    even: bool = False,
) -> Step:
    """This rank's share of the step that holds `slots`, laid out in micro-batches. Raises JobError
    as micro_batches does.

    `even`: as many micro-batches as any other rank has, idle ones last.
    """
    items, cut = step_items([documents[slot.index] for slot in slots], slots, rules)
    noised = [
        (item, one)
        for item, t in zip(items, _times(items, rules), strict=True)
        for one in corruptions(item, t, rules)
    ]
    lengths = [item.ids.size for item, _ in noised]
    hands = partition(lengths, ranks)
    groups = micro_batches(hands[rank], lengths, batch_size, layout)
    most = (
        max(len(micro_batches(hand, lengths, batch_size, layout)) for hand in hands) if even else 1
    )
    pieces = [_piece([noised[place] for place in group]) for group in groups]
    idle = [_idle_piece(items[0].ids)] * (most - len(pieces))
    return _counted([*pieces, *idle], noised, cut)


def build_streamed_step(packs: Sequence[Sequence[tuple[Document, Slot]]], rules: StepRules) -> Step:
    """This rank's packs of a streamed step, each a micro-batch as it is: two under `complementary`.

    Counts are this rank's alone.
    """
    pieces: list[Piece] = []
    noised: list[tuple[Item, Corruption]] = []
    for pack in packs:
        items, _ = step_items([document for document, _ in pack], [slot for _, slot in pack], rules)
        drawn = [
            corruptions(item, t, rules) for item, t in zip(items, _times(items, rules), strict=True)
        ]
        for copies in zip(*drawn, strict=True):
            together = list(zip(items, copies, strict=True))
            pieces.append(_piece(together))
            noised += together
    return _counted(pieces, noised, cut=0)


def _piece(noised: Sequence[tuple[Item, Corruption]]) -> Piece:
    corrupted = tuple(one for _, one in noised)
    return Piece(
        lay_out([item.ids for item, _ in noised], corrupted),
        tuple(item.slot.index for item, _ in noised),
        corrupted,
    )


def _counted(pieces: Sequence[Piece], noised: Sequence[tuple[Item, Corruption]], cut: int) -> Step:
    return Step(
        pieces=tuple(pieces),
        count=sum(one.count for _, one in noised),
        masked=sum(one.masked.size for _, one in noised),
        lengths=tuple(item.ids.size for item, _ in noised),
        supervised=sum(int(np.count_nonzero(item.supervised)) for item, _ in noised),
        cut=cut,
        fill=sum(item.fill for item, _ in noised),
    )


def step_items(
    chosen: Sequence[Document], slots: Sequence[Slot], rules: StepRules
) -> tuple[list[Item], int]:
    """The step's documents as they are trained on (answers cut, end tokens added, texts split), and
    answer tokens cut.
    """
    items = [
        Item(one.ids, one.supervised, one.prompt, slot)
        for one, slot in zip(chosen, slots, strict=True)
    ]
    items, cut = _cut_answers(items, rules)
    lengths = filled_lengths(
        [item.ids.size for item in items],
        [item.prompt for item in items],
        policy=rules.eos_policy,
        block=rules.eos_block,
        max_length=rules.max_length,
    )
    filled: list[Item] = []
    for item, length in zip(items, lengths, strict=True):
        ids, supervised = fill_with_end(
            item.ids, item.supervised, length, rules.end_ids, rules.fill_id
        )
        whole = replace(item, ids=ids, supervised=supervised, fill=ids.size - item.ids.size)
        shown = _show_blocks(whole, rules)
        cut += max(0, item.ids.size - shown.ids.size)
        filled += _split(shown, rules)
    return filled, cut


def _show_blocks(item: Item, rules: StepRules) -> Item:
    """Under `eos_policy block`, half of the time an answer ends at one of its block borders,
    uniformly drawn.

    Generation meets an answer block by block. A model that was only shown whole answers reads their
    length off the canvas, and squeezes a long one into the first block: measured, 5 of 8 long
    answers right without this, 8 of 8 with it. Tokens behind the border are missing from the
    canvas, the last block's half of the time. Those shown weigh the inverse of their chance to be,
    so that every token of an answer counts alike over the passes.
    """
    answer = item.ids.size - item.prompt
    blocks = -(-answer // rules.eos_block)
    if not rules.shows_blocks or rules.eos_policy != "block" or blocks < 2:
        return item
    rng = generator(rules.noise.seed, item.slot.index, item.slot.pass_, _BLOCKS)
    whole, end = rng.random() < 0.5, item.ids.size
    if not whole:
        end = item.prompt + int(rng.integers(1, blocks)) * rules.eos_block
    # Block k of B, from 1, is in the whole canvas and behind the borders k, ..., B - 1 of B - 1.
    block = np.concatenate([np.ones(item.prompt), np.arange(answer) // rules.eos_block + 1])
    chance = 0.5 + 0.5 * (blocks - block) / (blocks - 1)
    return replace(
        item,
        ids=item.ids[:end],
        supervised=item.supervised[:end],
        fill=max(0, item.fill - (item.ids.size - end)),
        scale=1 / chance[:end],
        left_out=int(np.count_nonzero(item.supervised[end:])),
    )


def _cut_answers(items: list[Item], rules: StepRules) -> tuple[list[Item], int]:
    """Dream's cutoffs, drawn once a step."""
    if not (rules.perbatch_cutoff or rules.resp_cutoff_ratio):
        return items, 0
    first = items[0].slot
    rng = generator(rules.noise.seed, first.ordinal, first.pass_, _CUTOFF)
    lengths = np.array([item.ids.size - item.prompt for item in items])
    kept = cutoff_lengths(
        lengths, perbatch=rules.perbatch_cutoff, resp_ratio=rules.resp_cutoff_ratio, rng=rng
    )
    ends = [item.prompt + int(keep) for item, keep in zip(items, kept, strict=True)]
    shorter = [
        replace(item, ids=item.ids[:end], supervised=item.supervised[:end])
        for item, end in zip(items, ends, strict=True)
    ]
    # With loss on the prompt too, a cut always leaves something to learn; without, an answer keeps
    # at least one token.
    return shorter, int(lengths.sum() - kept.sum())


def _split(item: Item, rules: StepRules) -> list[Item]:
    """SMDM's stochastic length: with that probability a text is cut at a uniform length, its tail a
    document of its own.
    """
    if not rules.stochastic_length:
        return [item]
    rng = generator(rules.noise.seed, item.slot.index, item.slot.pass_, _SPLIT)
    opening = 0 if rules.start_id is None else 1
    if item.ids.size < opening + 3 or rng.random() >= rules.stochastic_length:
        return [item]
    at = int(rng.integers(opening + 1, item.ids.size - 1))
    tail_ids, tail = item.ids[at:], item.supervised[at:].copy()
    if rules.start_id is None:
        tail[0] = False  # a document's first token is never masked
    else:  # the tail opens like any text, so that its first token can still be learned
        tail_ids = np.concatenate([np.array([rules.start_id], dtype=np.int32), tail_ids])
        tail = np.concatenate([[False], tail])
    head = replace(item, ids=item.ids[:at], supervised=item.supervised[:at])
    return [head, replace(item, ids=tail_ids, supervised=tail, prompt=opening, part=1)]


def _times(items: Sequence[Item], rules: StepRules) -> list[float]:
    times = [0.0] * len(items)
    groups: dict[tuple[int, int], list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault((item.slot.pass_, item.part), []).append(place)
    for (pass_, part), places in groups.items():
        slots = [items[place].slot for place in places]
        drawn = draw_times(
            rules.noise,
            pass_,
            [slot.ordinal for slot in slots],
            [slot.index for slot in slots],
            part,
        )
        for place, t in zip(places, drawn, strict=True):
            times[place] = float(t)
    return times


def corruptions(item: Item, t: float, rules: StepRules) -> list[Corruption]:
    """The document noised at time t; `complementary`: twice, the second time with exactly the other
    tokens masked.
    """
    slot, noise = item.slot, rules.noise
    if (
        drops := rules.prompt_drop > 0
        and generator(noise.seed, slot.index, slot.pass_, _DROP).random() < rules.prompt_drop
    ):
        item = replace(
            item,
            supervised=np.where(np.arange(item.ids.size) < item.prompt, False, item.supervised),
        )
    probability = mask_probability(noise.schedule, t)
    rng = generator(noise.seed, slot.index, slot.pass_, item.part)
    masked, factor = draw_mask(
        item.supervised, probability, noise.mask_count, rng, spare=int(rules.complementary)
    )

    def one(masked: NDArray[np.bool_], factor: float, t: float) -> Corruption:
        return corrupt(
            item.ids,
            item.supervised,
            masked,
            factor,
            schedule=noise.schedule,
            weigh=rules.weigh,
            norm=rules.norm,
            mask_id=rules.mask_id,
            t=t,
            dropped_prompt=item.prompt if drops else 0,
            scale=item.scale,
            left_out=item.left_out,
        )

    if not rules.complementary:
        return [one(masked, factor, t)]
    # The second time is t' with p(t') = 1 - p(t). Weighing its tokens by w(t) p(t) / p(t') keeps
    # the expected loss for any schedule: w = p'/p, so this is w(t') times the change of variables
    # |dt'/dt|.
    rest, other = item.supervised & ~masked, max(EPSILON, 1 - probability)
    count, length = np.count_nonzero(rest), np.count_nonzero(item.supervised)
    exact = other * length / count if noise.mask_count == "exact" and count else 1.0
    second = one(rest, exact * probability / other, t)
    return [
        one(masked, factor, t),
        replace(second, t=time_at(noise.schedule, other), probability=other),
    ]


def _idle_piece(ids: NDArray[np.int32]) -> Piece:
    """A rank without documents still takes part in what all ranks exchange: one document, nothing
    masked, no loss.
    """
    nothing = Corruption(ids, np.zeros(0, np.int64), np.zeros(0, np.float32), 0.0, 0.0, 0.0)
    return Piece(lay_out([ids], [nothing]), (), ())
