"""Masked diffusion: corrupted documents, the weight of each masked token, and the loss of a step.

loss = sum over the step of weight * nll, divided once by `count` over the step (micro-batches and
ranks). Norms: `token` (supervised tokens), `sequence` (each document by its own supervised tokens,
then documents: LLaDA's SFT guidelines), `masked` (masked tokens: Dream's trainer), `batch`
(documents).

S documents of a micro-batch, T tokens and B blocks of one document, M of its tokens masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .answers import Item
from .noise import (
    EPSILON,
    Levels,
    Noise,
    bert_replacement,
    draw_mask,
    draw_times,
    generator,
    time_at,
    time_weight,
)

# Streams of a document's generator: 6 for the replacement of its tokens, 7 for its tail's. Those
# below are for masks and answers.
_REPLACEMENT = 6

# (hidden bool [T], levels, factors [B] of the blocks' drawn mask counts) -> weights [T]
WeightFunction = Callable[[NDArray[np.bool_], Levels, Sequence[float]], NDArray[np.float64]]


class DocumentSums(Protocol):
    """Sums over the masked tokens of each document of a micro-batch, as models/head.py returns."""

    @property
    def weighted(self) -> Tensor: ...  # [S] sum of weight * nll, with gradients
    @property
    def nll(self) -> Tensor: ...  # [S] sum of nll in nats, without


# From the sums of a micro-batch's documents to its share of the step's loss, before the division by
# the step's count. A step adds these shares up: documents that a loss compares must lie in one
# micro-batch, and a document with nothing masked (sums of 0) must cost 0.
LossFunction = Callable[[DocumentSums], Tensor]


def summed(sums: DocumentSums) -> Tensor:
    """Add up the weighted sums; models/head.py is fastest for this loss."""
    return sums.weighted.sum()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Settings that turn masked tokens into a step's loss."""

    weight: WeightFunction
    norm: str
    of_sums: LossFunction = summed


class Scheduled(Protocol):
    """The parameter that a weight by time depends on."""

    @property
    def noise_schedule(self) -> str: ...


def weight_by_time(params: Scheduled) -> WeightFunction:
    """Return the weight function of a job whose tokens weigh w(t)."""
    return by_time(params.noise_schedule)


def by_time(schedule: str) -> WeightFunction:
    """Weigh every masked token of a block by w(t)."""
    return lambda _hidden, levels, factors: levels.per_token(
        [time_weight(schedule, t) * factor for t, factor in zip(levels.t, factors, strict=True)]
    )


def evenly(
    hidden: NDArray[np.bool_], _levels: Levels, _factors: Sequence[float]
) -> NDArray[np.float64]:
    """Weigh every masked token 1, whatever the drawn count: masked language modelling."""
    return np.ones(hidden.size)


@dataclass(frozen=True, kw_only=True)
class RowCopies:
    """Noisy copies of a document's blocks behind it, T tokens of this row together.

    The row's first tokens are the clean document. See batch.Copies and batch.sees.
    """

    position: NDArray[np.int64]  # [T] place of each token in the document
    copy: NDArray[np.int64]  # [T] 0 for the clean document, 1, 2, ... for a noisy copy
    limit: NDArray[np.int64]  # [T] a token sees the clean ones at places below it
    source: NDArray[np.int64]  # [M] places in the row whose states predict
    pairs: int  # (query, key) of this row that attend


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One noised document."""

    noisy: NDArray[np.int32]  # [T] ids, masked ones replaced; by what, Noise says
    masked: NDArray[np.int64]  # [M] places of predicted tokens, ascending
    weight: NDArray[np.float32]  # [M] loss weight of each masked token
    count: float  # this document's share of the step's divisor
    levels: Levels
    copies: RowCopies | None = None  # of block diffusion, whose row is longer than the document
    unit: NDArray[np.float32] | None = None  # [M] what a weight of 1 is in `weight`; 1 without


def corruptions(item: Item, levels: Levels, noise: Noise, loss: Loss) -> list[Corruption]:
    """Return the noised document; under `complementary` also with the other tokens masked."""
    rng = generator(noise.seed, item.index, item.pass_, item.part)
    masked = np.zeros(item.ids.size, dtype=bool)
    learned, spare = item.learned, int(noise.complementary)
    factors: list[float] = []
    for block, probability in zip(levels.blocks, levels.probability, strict=True):
        masked[block], factor = draw_mask(learned[block], probability, noise.mask_count, rng, spare)
        factors.append(factor)
    first = corrupt(item, masked, factors, levels, noise=noise, loss=loss)
    return (
        [first, _complement(item, masked, levels, noise, loss)] if noise.complementary else [first]
    )


def _complement(
    item: Item, masked: NDArray[np.bool_], levels: Levels, noise: Noise, loss: Loss
) -> Corruption:
    """Noise a document again, with exactly the supervised tokens masked that `masked` leaves out.

    The second time is t' with p(t') = 1 - p(t). Weighing its tokens by w(t) p(t) / p(t') keeps the
    expected loss for any schedule: w = p'/p, so this is w(t') times the change of variables
    |dt'/dt|.
    """
    rest = item.learned & ~masked
    others = tuple([max(EPSILON, 1 - probability) for probability in levels.probability])
    factors: list[float] = []
    for block, probability, other in zip(levels.blocks, levels.probability, others, strict=True):
        count, length = np.count_nonzero(rest[block]), np.count_nonzero(item.learned[block])
        exact = other * length / count if noise.mask_count == "exact" and count else 1.0
        factors.append(exact * probability / other)
    second = corrupt(item, rest, factors, levels, noise=noise, loss=loss)
    times = tuple([time_at(noise.schedule, other) for other in others])
    return replace(second, levels=replace(levels, t=times, probability=others))


def corrupt(
    item: Item,
    masked: NDArray[np.bool_],
    factors: Sequence[float],
    levels: Levels,
    *,
    noise: Noise,
    loss: Loss,
) -> Corruption:
    """Mask and weigh the drawn tokens of one document.

    Each becomes the mask; with `noise.ordinary`, it may show a random token or itself instead.
    `factors` [B] are those of the blocks' drawn mask counts. A token's weight is divided by its
    chance to be in this canvas (`item.scale`), so the expected loss over a document's canvases is that of
    the full document (Horvitz and Thompson 1952). Its share of the divisor counts the supervised
    tokens left out too, so it does not depend on the draw.
    """
    hidden = masked.copy()
    hidden[: item.dropped] = True
    places = np.flatnonzero(masked)
    length = int(np.count_nonzero(item.learned)) + item.left_out
    chance = np.ones(places.size) if item.scale is None else item.scale[places]
    weights = loss.weight(hidden, levels, factors)[places] * chance
    divisor = max(length, 1) if loss.norm == "sequence" else 1
    noisy = np.where(hidden, np.int32(noise.mask_id), item.ids)
    if noise.ordinary is not None:
        rng = generator(noise.seed, item.index, item.pass_, _REPLACEMENT + item.part)
        noisy[places] = bert_replacement(item.ids[places], noise.mask_id, noise.ordinary, rng)
    return Corruption(
        noisy=noisy,
        masked=places,
        weight=(weights / divisor).astype(np.float32),
        count=document_count(loss.norm, length, float(chance.sum())),
        levels=levels,
        unit=(chance / divisor).astype(np.float32),
    )


def document_count(norm: str, supervised: int, masked: float) -> float:
    """Return what one document adds to the step's divisor."""
    return {"token": supervised, "masked": masked, "sequence": 1, "batch": 1}[norm]


# (a document, its levels, the noise, the loss) -> what a step computes of it
Corrupt = Callable[[Item, Levels, Noise, Loss], list[Corruption]]


class Noising(Protocol):
    """Noise of a step's documents by a method: `WholeDocuments`, or a method's own."""

    @property
    def copies(self) -> int:
        """Return the noisy copies behind a clean document; 0: it is noised in its place."""
        ...

    def levels(self, items: Sequence[Item], noise: Noise) -> list[Levels]:
        """Draw the noise levels of a step's documents, of each rank alike."""
        ...

    def level(self, item: Item, noise: Noise, t: float) -> Levels:
        """Return the levels of a document whose blocks all have the time t."""
        ...

    def corrupt(self, item: Item, levels: Levels, noise: Noise, loss: Loss) -> list[Corruption]:
        """Return what a step computes of a document."""
        ...

    def at(self, step: int, tokens: int) -> Noising:
        """Return the noising of step `step`, from 0, before which `tokens` tokens were seen."""
        ...

    def held_out(self) -> Noising:
        """Return the noising of evaluations, which depends on nothing but the document."""
        ...

    def row_tokens(
        self,
        lengths: NDArray[np.int64],
        supervised: NDArray[np.bool_],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Return the tokens [S] of the rows of S documents.

        `lengths` [S] with the end fill; `supervised` [N] and `offsets` [S + 1] without.
        """
        ...

    def predicted(self, share: float) -> float:
        """Return the predictions of a document, for each of its supervised tokens.

        `share`: of the method's supervised tokens that a noisy copy masks.
        """
        ...


@dataclass(frozen=True)
class WholeDocuments:
    """Noising of each document in its place, at one time."""

    noised: Corrupt = corruptions

    @property
    def copies(self) -> int:
        return 0

    def levels(self, items: Sequence[Item], noise: Noise) -> list[Levels]:
        times = document_times(items, noise)
        return [self.level(item, noise, t) for item, t in zip(items, times, strict=True)]

    def level(self, item: Item, noise: Noise, t: float) -> Levels:
        return Levels.of(noise.schedule, [t], [item.ids.size])

    def corrupt(self, item: Item, levels: Levels, noise: Noise, loss: Loss) -> list[Corruption]:
        return self.noised(item, levels, noise, loss)

    def at(self, step: int, tokens: int) -> WholeDocuments:
        return self

    def held_out(self) -> WholeDocuments:
        return self

    def row_tokens(
        self,
        lengths: NDArray[np.int64],
        supervised: NDArray[np.bool_],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        return lengths

    def predicted(self, share: float) -> float:
        return share


def document_times(items: Sequence[Item], noise: Noise) -> list[float]:
    """Draw one time for each document."""
    times = [0.0] * len(items)
    groups: dict[tuple[int, int], list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault((item.pass_, item.part), []).append(place)
    for (pass_, part), places in groups.items():
        ordinals = [items[place].ordinal for place in places]
        indices = [items[place].index for place in places]
        drawn = draw_times(noise, pass_, ordinals, indices, part)
        for place, t in zip(places, drawn.tolist(), strict=True):
            times[place] = t
    return times


def in_place(_params: object) -> WholeDocuments:
    """Return the noising of a job whose documents are noised in their place."""
    return WholeDocuments()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Objective of a method: its weight function and noising, made from the job's parameters, and
    its loss.
    """

    method: str
    weight: Callable[[Any], WeightFunction]
    loss: LossFunction = summed
    noising: Callable[[Any], Noising] = in_place
