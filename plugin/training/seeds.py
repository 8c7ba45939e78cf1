"""Seeds of the draws that a resumed run must repeat."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """Return a seed in [0, 2^63) for `numbers`, all of which are at least 0.

    numpy's SeedSequence: the same on every machine and in every version. Another rule needs another
    DRAWS in run/state.py.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
