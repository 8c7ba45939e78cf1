"""Noise of a document: its times, mask probabilities and masks.

Every draw is a function of (run seed, document index, pass): the number of devices, the layout of a
batch and a resume never change it. Schedules as in MDLM (Sahoo et al. 2024, arXiv 2406.07524) and
LLaDA (Nie et al. 2025, arXiv 2502.09992). S documents, T tokens and B blocks of one document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-3  # the lowest time: below it a weight of 1/t would let one token rule a step
# Additive recurrence with the golden ratio: low discrepancy for any number of documents.
GOLDEN = 0.6180339887498949
_TIME_STREAM = 0xFFFF_FFFF_FFFF_FFFF  # no document has this index
# Seeds are below it: times and masks of one document come from different streams.
IID_TIMES = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Settings of the noise of documents, without any state."""

    seed: int
    mask_id: int  # what a masked token becomes
    schedule: Literal["linear", "cosine"] = "linear"
    t_sampling: Literal["iid", "stratified"] = "stratified"
    mask_count: Literal["bernoulli", "exact"] = "bernoulli"
    t_min: float = 0.0
    t_max: float = 1.0
    complementary: bool = False  # every document twice, with disjoint masks that cover it
    # Ids of ordinary tokens: chosen tokens are replaced as BERT does. None: they become the mask.
    ordinary: NDArray[np.int32] | None = field(default=None, compare=False)

    @property
    def single_time(self) -> float | None:
        """Return the time of every document, if there is just one (masked language modelling)."""
        return self.t_min if self.t_min == self.t_max else None


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The noise levels of one document: a time for each of its B blocks.

    Most methods noise a document as one block. Block diffusion draws a time for each block that it
    noises: T are then the tokens of a noisy copy.
    """

    tokens: tuple[int, ...]  # [B] of each block, in order; their sum is T
    t: tuple[float, ...]  # [B]
    probability: tuple[float, ...]  # [B] that a supervised token of the block is masked

    @staticmethod
    def of(schedule: str, times: Sequence[float], tokens: Sequence[int]) -> Levels:
        """Return the levels of blocks of `tokens` tokens, noised at `times`."""
        probability = tuple([mask_probability(schedule, t) for t in times])
        return Levels(tokens=tuple(tokens), t=tuple(times), probability=probability)

    @property
    def blocks(self) -> list[slice]:
        """Return the place of each block among the tokens."""
        ends = list(accumulate(self.tokens))
        return [slice(start, end) for start, end in pairwise((0, *ends))]

    def per_token(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Spread a value per block [B] over the block's tokens [T]."""
        return np.repeat(values, self.tokens)

    @property
    def mean_t(self) -> float:
        return sum(self.t) / len(self.t)

    @property
    def mean_probability(self) -> float:
        """Return the mask probability, averaged over the blocks, by which an evaluation groups
        losses.
        """
        return sum(self.probability) / len(self.probability)


def generator(seed: int, index: int, pass_: int, stream: int = 0) -> np.random.Generator:
    """Return the generator of one document in one pass.

    It is counter-based, so it costs microseconds and needs no stored state. `stream` separates what
    is drawn for the same document: its mask, its second part, ...
    """
    key, counter = (
        np.array([seed, index], dtype=np.uint64),
        np.array([0, 0, stream, pass_], dtype=np.uint64),
    )
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_times(
    noise: Noise, pass_: int, ordinals: Sequence[int], indices: Sequence[int], part: int = 0
) -> NDArray[np.float64]:
    """Draw times t [S] in [max(t_min, EPSILON), t_max).

    stratified: t follows the document's ordinal in the pass, so neighbours (and so every step)
    cover the interval evenly. iid: each document draws its own. `part` 1 is for tails of documents
    split in two, half an interval away from their heads.
    """
    if noise.t_sampling == "stratified":
        start = generator(noise.seed, _TIME_STREAM, pass_).random()
        uniform = np.mod(start + np.asarray(ordinals, dtype=np.float64) * GOLDEN + part / 2, 1.0)
    else:
        uniform = np.array(
            [generator(noise.seed ^ IID_TIMES, index, pass_, part).random() for index in indices]
        )
    low = max(noise.t_min, EPSILON)
    return low + (noise.t_max - low) * uniform


def mask_probability(schedule: str, t: float) -> float:
    """Return 1 - alpha(t): linear t; cosine cos(pi/2 (1 - t))."""
    return t if schedule == "linear" else math.cos(math.pi / 2 * (1 - t))


def time_at(schedule: str, probability: float) -> float:
    """Return the time, at least EPSILON, whose mask_probability is `probability`."""
    return max(
        EPSILON, probability if schedule == "linear" else 1 - 2 / math.pi * math.acos(probability)
    )


def time_weight(schedule: str, t: float) -> float:
    """Return w(t) = -alpha'(t) / (1 - alpha(t)), the weight of one masked token.

    linear 1/t; cosine pi/2 tan(pi/2 (1 - t)).
    """
    return 1 / t if schedule == "linear" else math.pi / 2 * math.tan(math.pi / 2 * (1 - t))


def bert_replacement(
    ids: NDArray[np.int32], mask_id: int, ordinary: NDArray[np.int32], rng: np.random.Generator
) -> NDArray[np.int32]:
    """Return what is shown of chosen tokens `ids` [M].

    In 80 % of cases it is the mask, in 10 % a random one of the `ordinary` ids, in 10 % the token
    itself (BERT, Devlin et al. 2019, arXiv 1810.04805, section 3.1).
    """
    share, random = rng.random(ids.size), ordinary[rng.integers(ordinary.size, size=ids.size)]
    return np.where(share < 0.8, np.int32(mask_id), np.where(share < 0.9, random, ids))


def draw_mask(
    supervised: NDArray[np.bool_],
    probability: float,
    mask_count: str,
    rng: np.random.Generator,
    spare: int = 0,
) -> tuple[NDArray[np.bool_], float]:
    """Draw the masked tokens of one block: bool [T] within `supervised`, and a weight factor.

    bernoulli: each token with `probability`, factor 1. exact: l = max(1, ceil(p L)) of the L
    supervised tokens, factor p L / l, which keeps the expected loss the same; at least `spare` of
    two or more tokens stay visible, for a complementary copy.
    """
    masked = np.zeros(supervised.shape, dtype=bool)
    places = np.flatnonzero(supervised)
    if mask_count == "bernoulli":
        masked[places] = rng.random(places.size) < probability
        return masked, 1.0
    if places.size == 0:
        return masked, 1.0
    count = max(1, min(math.ceil(probability * places.size - 1e-9), places.size - spare))
    masked[rng.permutation(places)[:count]] = True
    return masked, probability * places.size / count
