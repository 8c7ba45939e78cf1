"""The masked-diffusion loss of one document as weights on its masked tokens, and what the step
divides by.

loss = sum over the step of weight * nll, divided once by `count` over the whole step (micro-batches
and ranks). Norms: `token` (supervised tokens), `sequence` (each document by its own supervised
tokens, then documents: LLaDA's SFT guidelines), `masked` (masked tokens: Dream's trainer), `batch`
(documents).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .noise import mask_probability, time_weight

# (hidden bool [T], t, factor of the drawn mask count) -> the weight of each token [T], or one
# number for all of them
Weigh = Callable[[NDArray[np.bool_], float, float], "NDArray[np.float64] | float"]


@dataclass(frozen=True)
class Corruption:
    """One noised document of T tokens; M of them are masked."""

    noisy: NDArray[np.int32]  # [T] ids, masked ones replaced
    masked: NDArray[np.int64]  # [M] positions, ascending
    weight: NDArray[np.float32]  # [M] loss weight of each masked token
    count: float  # this document's share of the step's divisor
    t: float
    probability: float  # that a supervised token was masked


def by_time(schedule: str) -> Weigh:
    """The weight of bert and llada: w(t) for every masked token of a document."""
    return lambda _hidden, t, factor: time_weight(schedule, t) * factor


def corrupt(
    ids: NDArray[np.int32],
    supervised: NDArray[np.bool_],
    masked: NDArray[np.bool_],
    factor: float,
    *,
    schedule: str,
    weigh: Weigh,
    norm: str,
    mask_id: int,
    t: float,
    dropped_prompt: int = 0,
    scale: NDArray[np.float64] | None = None,
    left_out: int = 0,
) -> Corruption:
    """Mask the drawn tokens of one document, always with `mask_id` (never 80/10/10), and weigh
    them.

    `dropped_prompt`: this many first tokens are hidden too, without being learned (training for
    guidance). `scale` [T]: the inverse of each token's chance to be in this canvas, and `left_out`
    supervised tokens that are not: the expected loss of the canvases of a document is then that of
    the whole one (Horvitz and Thompson 1952), and its share of the divisor does not depend on the
    draw.
    """
    hidden = masked.copy()
    hidden[:dropped_prompt] = True
    places = np.flatnonzero(masked)
    length = int(np.count_nonzero(supervised)) + left_out
    chance = np.ones(places.size) if scale is None else scale[places]
    weights = np.broadcast_to(weigh(hidden, t, factor), ids.shape)[places] * chance
    return Corruption(
        noisy=np.where(hidden, np.int32(mask_id), ids),
        masked=places,
        weight=(weights / (max(length, 1) if norm == "sequence" else 1)).astype(np.float32),
        count=document_count(norm, length, float(chance.sum())),
        t=t,
        probability=mask_probability(schedule, t),
    )


def document_count(norm: str, supervised: int, masked: float) -> float:
    """What one document adds to the step's divisor."""
    return {"token": supervised, "masked": masked, "sequence": 1, "batch": 1}[norm]
