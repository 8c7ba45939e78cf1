"""When and where a document is masked. T tokens of a document, S documents.

Every draw is a function of (run seed, document index, pass): the number of devices, the layout of a
batch and a resume never change it. Schedules as in MDLM (Sahoo et al. 2024, arXiv 2406.07524) and
LLaDA (Nie et al. 2025, arXiv 2502.09992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-3  # the lowest time: below it a weight of 1/t would let one token rule a step
# additive recurrence with the golden ratio: low discrepancy for any number of documents
GOLDEN = 0.6180339887498949
_TIME_STREAM = 0xFFFF_FFFF_FFFF_FFFF  # no document has this index
_IID_TIMES = (
    1 << 63
)  # seeds are below it: times and masks of one document come from different streams


@dataclass(frozen=True)
class Noise:
    """How documents are noised: settings of a run, never its state."""

    seed: int
    schedule: Literal["linear", "cosine"] = "linear"
    t_sampling: Literal["iid", "stratified"] = "stratified"
    mask_count: Literal["bernoulli", "exact"] = "bernoulli"
    t_min: float = 0.0
    t_max: float = 1.0


def generator(seed: int, index: int, pass_: int, stream: int = 0) -> np.random.Generator:
    """The generator of one document in one pass; counter-based, so it costs microseconds and needs
    no stored state.

    `stream` tells apart what is drawn for the same document: its mask, its second part, ...
    """
    key, counter = (
        np.array([seed, index], dtype=np.uint64),
        np.array([0, 0, stream, pass_], dtype=np.uint64),
    )
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_times(
    noise: Noise, pass_: int, ordinals: Sequence[int], indices: Sequence[int], part: int = 0
) -> NDArray[np.float64]:
    """Times t[S] in [max(t_min, EPSILON), t_max).

    stratified: t follows the document's ordinal in the pass, so neighbours (and so every step)
    cover the interval evenly. iid: each document draws its own. `part` 1 is for tails of documents
    cut in two, half an interval away from their heads.
    """
    if noise.t_sampling == "stratified":
        start = generator(noise.seed, _TIME_STREAM, pass_).random()
        uniform = np.mod(start + np.asarray(ordinals, dtype=np.float64) * GOLDEN + part / 2, 1.0)
    else:
        uniform = np.array(
            [generator(noise.seed ^ _IID_TIMES, index, pass_, part).random() for index in indices]
        )
    low = max(noise.t_min, EPSILON)
    return low + (noise.t_max - low) * uniform


def mask_probability(schedule: str, t: float) -> float:
    """1 - alpha(t): linear t; cosine cos(pi/2 (1 - t))."""
    return t if schedule == "linear" else math.cos(math.pi / 2 * (1 - t))


def time_at(schedule: str, probability: float) -> float:
    """The time, at least EPSILON, at which tokens are masked with `probability`: the inverse of
    mask_probability.
    """
    return max(
        EPSILON, probability if schedule == "linear" else 1 - 2 / math.pi * math.acos(probability)
    )


def time_weight(schedule: str, t: float) -> float:
    """w(t) = -alpha'(t) / (1 - alpha(t)), the weight of one masked token: linear 1/t; cosine pi/2
    tan(pi/2 (1 - t)).
    """
    return 1 / t if schedule == "linear" else math.pi / 2 * math.tan(math.pi / 2 * (1 - t))


def draw_mask(
    supervised: NDArray[np.bool_],
    probability: float,
    mask_count: str,
    rng: np.random.Generator,
    spare: int = 0,
) -> tuple[NDArray[np.bool_], float]:
    """Which tokens of one document are masked, bool[T] within `supervised`, and a factor for their
    weight.

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
