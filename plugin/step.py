"""One step, from its slots to this rank's micro-batches: fill, noise, count, deal, lay out.

Everything up to the count is a function of the step's list alone, computed alike on every rank: so no rank has to ask another
what the loss is divided by, and any split of a step gives the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .batch import Batch
from .data.chat import fill_with_end, filled_lengths
from .data.documents import Document, Documents
from .data.layout import deal, lay_out, micro_batches
from .data.steps import Slot
from .objectives.mdlm import Corruption, corrupt
from .objectives.noise import Noise, draw_times


@dataclass(frozen=True)
class StepRules:
    """What turns documents into noised batches: settings of the run."""

    noise: Noise
    norm: str
    mask_id: int
    end_id: int
    eos_policy: str  # single, block, batch
    eos_block: int
    max_length: int


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
    tokens: int  # real tokens of the whole step
    supervised: int


def build_step(
    slots: Sequence[Slot], documents: Documents, rules: StepRules, *, batch_size: int, rank: int = 0, ranks: int = 1
) -> Step:
    """This rank's share of the step that holds `slots`."""
    filled = fill([documents[slot.index] for slot in slots], rules)
    noised = [
        _corrupt(ids, learned, slot, t, rules)
        for (ids, learned), slot, t in zip(filled, slots, _times(slots, rules), strict=True)
    ]
    lengths = [ids.size for ids, _ in filled]
    hand = deal(lengths, ranks)[rank]
    groups = micro_batches(hand, lengths, batch_size)
    pieces = [
        Piece(
            lay_out([filled[place][0] for place in group], [noised[place] for place in group]),
            tuple(slots[place].index for place in group),
            tuple(noised[place] for place in group),
        )
        for group in groups
    ]
    return Step(
        pieces=tuple(pieces) or (_idle_piece(filled[0][0]),),
        count=sum(one.count for one in noised),
        masked=sum(one.masked.size for one in noised),
        tokens=sum(lengths),
        supervised=sum(int(np.count_nonzero(learned)) for _, learned in filled),
    )


def fill(chosen: Sequence[Document], rules: StepRules) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """(ids [T], supervised [T]) of a step's documents, end tokens added as the policy says."""
    lengths = filled_lengths(
        [one.ids.size for one in chosen],
        [one.prompt for one in chosen],
        policy=rules.eos_policy,
        block=rules.eos_block,
        max_length=rules.max_length,
    )
    return [fill_with_end(one.ids, one.supervised, length, rules.end_id) for one, length in zip(chosen, lengths, strict=True)]


def _times(slots: Sequence[Slot], rules: StepRules) -> list[float]:
    times = [0.0] * len(slots)
    for pass_ in {slot.pass_ for slot in slots}:
        places = [place for place, slot in enumerate(slots) if slot.pass_ == pass_]
        drawn = draw_times(
            rules.noise, pass_, [slots[place].ordinal for place in places], [slots[place].index for place in places]
        )
        for place, t in zip(places, drawn, strict=True):
            times[place] = float(t)
    return times


def _corrupt(ids: NDArray[np.int32], learned: NDArray[np.bool_], slot: Slot, t: float, rules: StepRules) -> Corruption:
    return corrupt(
        ids, learned, noise=rules.noise, norm=rules.norm, mask_id=rules.mask_id, t=t, index=slot.index, pass_=slot.pass_
    )


def _idle_piece(ids: NDArray[np.int32]) -> Piece:
    """A rank without documents still takes part in the gradient exchange: one document, nothing masked, no loss."""
    nothing = Corruption(ids, np.zeros(0, np.int64), np.zeros(0, np.float32), 0.0, 0.0, 0.0)
    return Piece(lay_out([ids], [nothing]), (), ())
