"""Order of a run: the documents of each optimizer step.

A step is a fixed list; ranks and micro-batches only decide its layout. The run's documents form one
endless sequence, pass after pass, each pass in its own order. Step k takes the next `step_size` of
them. The step number alone gives (pass, position): a resumed run needs no state of a loader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER = 1 << 61  # keeps this random stream apart from that of the masks


@dataclass(frozen=True)
class Slot:
    """A document's place in the run: its pass, its ordinal in that pass, and its index."""

    pass_: int
    ordinal: int
    index: int


# A step touches at most two passes, unless the dataset is smaller than a step.
@lru_cache(maxsize=2)
def pass_order(documents: int, seed: int, pass_: int) -> NDArray[np.int64]:
    """Draw the order of one pass, [documents]."""
    key = np.array([seed ^ _ORDER, pass_], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(documents)


def step_slots(
    documents: int, step_size: int, step: int, seed: int, total: int | None = None, behind: int = 0
) -> list[Slot]:
    """Return the slots of step `step` (from 0).

    The run ends after `total` documents, so its last step may be short. `behind`: documents by
    which a resumed run lags behind full steps, because the run it resumes ended with a short step.
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
    """Return (steps, total documents or None).

    Positive `epochs` win; a short last step then keeps any document from being dropped or repeated.
    """
    if epochs > 0:
        total = math.ceil(documents * epochs)
        return math.ceil((total + behind) / step_size), total
    return steps, None
