"""The masked-diffusion loss of one document as weights on its masked tokens, and what the step divides by.

loss = sum over the step of weight * nll, divided once by `count` over the whole step (micro-batches and ranks). Norms:
`token` (supervised tokens), `sequence` (each document by its own supervised tokens, then documents: LLaDA's SFT guidelines),
`masked` (masked tokens: Dream's trainer), `batch` (documents).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .noise import Noise, draw_mask, generator, mask_probability, time_weight


@dataclass(frozen=True)
class Corruption:
    """One noised document of T tokens; M of them are masked."""

    noisy: NDArray[np.int32]  # [T] ids, masked ones replaced
    masked: NDArray[np.int64]  # [M] positions, ascending
    weight: NDArray[np.float32]  # [M] loss weight of each masked token
    count: float  # this document's share of the step's divisor
    t: float
    probability: float  # that a supervised token was masked


def corrupt(
    ids: NDArray[np.int32],
    supervised: NDArray[np.bool_],
    *,
    noise: Noise,
    norm: str,
    mask_id: int,
    t: float,
    index: int,
    pass_: int,
) -> Corruption:
    """Mask one document at time t and weigh its masked tokens. A masked token always becomes `mask_id` (never 80/10/10)."""
    probability = mask_probability(noise.schedule, t)
    masked, factor = draw_mask(supervised, probability, noise.mask_count, generator(noise.seed, index, pass_))
    places = np.flatnonzero(masked)
    length = int(np.count_nonzero(supervised))
    weight = time_weight(noise.schedule, t) * factor / (max(length, 1) if norm == "sequence" else 1)
    return Corruption(
        noisy=np.where(masked, np.int32(mask_id), ids),
        masked=places,
        weight=np.full(places.size, weight, dtype=np.float32),
        count=document_count(norm, length, places.size),
        t=t,
        probability=probability,
    )


def document_count(norm: str, supervised: int, masked: int) -> float:
    """What one document adds to the step's divisor."""
    return {"token": supervised, "masked": masked, "sequence": 1, "batch": 1}[norm]
