"""Building of one step: from its documents to this rank's noised, counted micro-batches.

Everything up to the count is a function of the step's list of documents alone, computed alike on
every rank. So no rank has to ask another what the loss is divided by, and any split of a step gives
the same loss. Streamed packs are the exception: each rank knows only its own, and
`assembly.packed.counts.add_up` sums the counts. T tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..batch import Batch
from ..data.collate import lay_out
from ..data.documents import Document, Documents
from ..data.packing import PADDED, Layout, micro_batches, partition
from ..data.steps import Slot
from ..objectives.answers import Answers, EndFill, Item
from ..objectives.masked import (
    Corruption,
    Loss,
    LossFunction,
    Noising,
    RowCopies,
    WholeDocuments,
    summed,
)
from ..objectives.noise import Levels, Noise


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """Settings that turn documents into noised micro-batches and a loss."""

    noise: Noise
    answers: Answers
    loss: Loss
    noising: Noising = field(default_factory=WholeDocuments)

    def at(self, step: int, tokens: int = 0) -> StepRules:
        """Return the rules of step `step`, from 0, before which a run of packs saw `tokens` tokens."""
        return replace(self, noising=self.noising.at(step, tokens))

    def undisturbed(self, *kept: type) -> StepRules:
        """Show every document in full and once: of the transforms, only the end fill and `kept`."""
        return replace(
            self,
            noise=replace(self.noise, complementary=False),
            answers=self.answers.only(EndFill, *kept),
            noising=self.noising.held_out(),
        )


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of noised documents."""

    batch: Batch
    documents: tuple[int, ...]  # indices of its documents
    corruptions: tuple[Corruption, ...]


@dataclass(frozen=True)
class Step:
    micro_batches: tuple[MicroBatch, ...]  # this rank's
    count: float  # what the loss of the step is divided by, all ranks together
    masked: int  # masked tokens of the step, all ranks together
    lengths: tuple[int, ...]  # tokens of each document of the step, end fill included
    supervised: int
    cut: int  # answer tokens that cutoffs and block borders removed
    fill: int = 0  # end tokens among the lengths that no document holds
    loss: LossFunction = summed  # from a micro-batch's sums to its share of the loss, undivided
    # With noisy copies: tokens of all rows, and the pairs (query, key) of them that attend.
    rows: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the data holds."""
        return sum(self.lengths) - self.fill


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
    """Return this rank's share of the step that holds `slots`, laid out in micro-batches.

    `even`: as many micro-batches as any other rank has, idle ones last. Raises JobError as
    micro_batches does.
    """
    items = step_items([documents[slot.index] for slot in slots], slots, rules)
    noised = [
        (item, corruption)
        for item, levels in zip(items, rules.noising.levels(items, rules.noise), strict=True)
        for corruption in rules.noising.corrupt(item, levels, rules.noise, rules.loss)
    ]
    lengths = [corruption.noisy.size for _, corruption in noised]
    shares = partition(lengths, ranks)
    groups = micro_batches(shares[rank], lengths, batch_size, layout)
    most = (
        max(len(micro_batches(share, lengths, batch_size, layout)) for share in shares)
        if even
        else 1
    )
    laid_out = [_micro_batch([noised[place] for place in group]) for group in groups]
    idle = [_idle_micro_batch(*noised[0])] * (most - len(laid_out))
    return _counted([*laid_out, *idle], noised, sum(item.cut for item in items), rules)


def build_streamed_step(packs: Sequence[Sequence[tuple[Document, Slot]]], rules: StepRules) -> Step:
    """Return this rank's packs of a streamed step, each a micro-batch; two under `complementary`.

    Counts are this rank's alone.
    """
    laid_out: list[MicroBatch] = []
    noised: list[tuple[Item, Corruption]] = []
    for pack in packs:
        items = step_items([document for document, _ in pack], [slot for _, slot in pack], rules)
        drawn = [
            rules.noising.corrupt(item, levels, rules.noise, rules.loss)
            for item, levels in zip(items, rules.noising.levels(items, rules.noise), strict=True)
        ]
        for copies in zip(*drawn, strict=True):
            together = list(zip(items, copies, strict=True))
            laid_out.append(_micro_batch(together))
            noised += together
    return _counted(laid_out, noised, 0, rules)


def step_items(chosen: Sequence[Document], slots: Sequence[Slot], rules: StepRules) -> list[Item]:
    """Return the step's documents as they are trained on: cut, filled with end tokens, split."""
    items = [
        Item(
            ids=document.ids,
            supervised=document.supervised,
            prompt=document.prompt,
            index=slot.index,
            pass_=slot.pass_,
            ordinal=slot.ordinal,
        )
        for document, slot in zip(chosen, slots, strict=True)
    ]
    return rules.answers.transformed(items, rules.noise.seed)


def _micro_batch(noised: Sequence[tuple[Item, Corruption]]) -> MicroBatch:
    corrupted = tuple(corruption for _, corruption in noised)
    return MicroBatch(
        lay_out([item.ids for item, _ in noised], corrupted),
        tuple(item.index for item, _ in noised),
        corrupted,
    )


def _counted(
    laid_out: Sequence[MicroBatch],
    noised: Sequence[tuple[Item, Corruption]],
    cut: int,
    rules: StepRules,
) -> Step:
    return Step(
        micro_batches=tuple(laid_out),
        count=sum(corruption.count for _, corruption in noised),
        masked=sum(corruption.masked.size for _, corruption in noised),
        lengths=tuple(item.ids.size for item, _ in noised),
        supervised=sum(int(np.count_nonzero(item.supervised)) for item, _ in noised),
        cut=cut,
        fill=sum(item.fill for item, _ in noised),
        loss=rules.loss.of_sums,
        rows=_rows([corruption for _, corruption in noised]),
    )


def _rows(corruptions: Sequence[Corruption]) -> tuple[int, int] | None:
    """Return (tokens, pairs that attend) of rows with noisy copies."""
    rows = [one.copies for one in corruptions if one.copies]
    if not rows:
        return None
    return sum(row.copy.size for row in rows), sum(row.pairs for row in rows)


def _idle_micro_batch(item: Item, like: Corruption) -> MicroBatch:
    """Return a micro-batch of one document with nothing masked, so without a loss.

    A rank without documents still takes part in what all ranks exchange. Beside rows with noisy
    copies, the document is a row without any.
    """
    place = np.arange(item.ids.size)
    alone = RowCopies(
        position=place,
        copy=np.zeros_like(place),
        limit=np.full_like(place, place.size),
        source=np.zeros(0, np.int64),
        pairs=0,
    )
    nothing = Corruption(
        noisy=item.ids,
        masked=np.zeros(0, np.int64),
        weight=np.zeros(0, np.float32),
        count=0.0,
        levels=Levels.of("linear", [0.0], [item.ids.size]),
        copies=alone if like.copies else None,
    )
    return MicroBatch(lay_out([item.ids], [nothing]), (), ())
