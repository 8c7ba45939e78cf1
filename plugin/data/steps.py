"""Which documents an optimizer step holds. A step is a fixed list; ranks and micro-batches only
decide how it is laid out.

The run's documents form one endless sequence, pass after pass, each pass in an order of its own.
Step k takes the next `step_size` of them. So (step) alone gives (pass, position), and a resumed run
needs no state of a loader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER = 1 << 61


@dataclass(frozen=True)
class Slot:
    """A document's place in the run: which pass, its ordinal there, and which document it is."""

    pass_: int
    ordinal: int
    index: int


@lru_cache(
    maxsize=2
)  # a step touches at most two passes, unless the dataset is smaller than a step
def pass_order(documents: int, seed: int, pass_: int) -> NDArray[np.int64]:
    """The order [documents] of one pass."""
    key = np.array(
        [seed ^ _ORDER, pass_], dtype=np.uint64
    )  # a stream of its own: the masks have theirs
    return np.random.Generator(np.random.Philox(key=key)).permutation(documents)


def step_slots(
    documents: int, step_size: int, step: int, seed: int, total: int | None = None, behind: int = 0
) -> list[Slot]:
    """The slots of step `step` (from 0). `total` documents end the run: its last step may be short.

    `behind`: documents by which a resumed run lags behind whole steps, because the one it resumes
    ended with a short step.
    """
    first = step * step_size - behind
    last = first + step_size if total is None else min(first + step_size, total)
    slots: list[Slot] = []
    for place in range(first, last):
        pass_, ordinal = divmod(place, documents)
        slots.append(Slot(pass_, ordinal, int(pass_order(documents, seed, pass_)[ordinal])))
    return slots


def run_length(
    documents: int, step_size: int, epochs: float, steps: int, behind: int = 0
) -> tuple[int, int | None]:
    """(steps, total documents or None): epochs above 0 win, and then nothing is dropped and nothing
    seen twice too often.
    """
    if epochs > 0:
        total = math.ceil(documents * epochs)
        return math.ceil((total + behind) / step_size), total
    return steps, None
