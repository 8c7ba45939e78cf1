"""Order of a run over stored documents: pure functions, without a permutation in memory.

A pass has a number of slots for each source. A seeded bijection of the pass mixes the slots of all
sources, and a seeded bijection of each source, the same in all passes, names its documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
# Finaliser of splitmix64: every bit of the input changes half of the output's bits.
_MIXERS = tuple(
    np.array(value, dtype=np.uint64) for value in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_SHIFTS = tuple(np.array(value, dtype=np.uint64) for value in (30, 27, 31))


class Bijection:
    """A pseudo-random bijection on 0 .. n - 1.

    A Feistel network permutes the next even power of two; a value beyond n - 1 is permuted again
    until it lies below n (cycle walking). Source: Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains".
    """

    def __init__(self, n: int, key: tuple[int, ...]):
        assert 0 < n < 1 << 62
        self._n = np.uint64(n)
        half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._half, self._mask = np.uint64(half), np.uint64((1 << half) - 1)
        text = ",".join(map(str, (n, *key))).encode()
        digest = hashlib.blake2b(text, digest_size=8 * ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype=np.uint64)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image of each place, [places]."""
        values = self._permuted(places.astype(np.uint64))
        while (beyond := np.flatnonzero(values >= self._n)).size:
            values[beyond] = self._permuted(values[beyond])
        return values.astype(np.int64)

    def _permuted(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & self._mask)
        return (left << self._half) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in zip(_SHIFTS[:2], _MIXERS, strict=True):
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> _SHIFTS[-1])


@dataclass(frozen=True)
class Places:
    """Documents at some positions of a pass, [positions] each."""

    sources: NDArray[np.int64]
    documents: NDArray[np.int64]  # numbers within their source
    visits: NDArray[np.int64]  # earlier passes over the same document


class Order:
    """The documents of every pass over sources of `sizes` documents with weights.

    A source of n documents with weight w has max(1, round(w n)) slots a pass. Its slots of all
    passes, one after the other, walk over its documents again and again, so that all documents come
    equally often for any weight.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        self._sizes, self._seed = tuple(sizes), seed
        self._slots = [
            max(1, round(weight * size)) if size else 0
            for size, weight in zip(sizes, weights, strict=True)
        ]
        self._ends = np.cumsum(self._slots, dtype=np.int64)
        self._of_sources = [
            Bijection(size, (seed, 0, source)) if size else None
            for source, size in enumerate(sizes)
        ]

    def __len__(self) -> int:
        """Return the positions of a pass."""
        return int(self._ends[-1]) if self._ends.size else 0

    @property
    def slots(self) -> list[int]:
        """Return the slots of each source in a pass."""
        return list(self._slots)

    def at(self, pass_: int, positions: NDArray[np.int64]) -> Places:
        """Return the documents at `positions` of a pass."""
        mixed = Bijection(len(self), (self._seed, 1, pass_))(positions)
        sources = np.searchsorted(self._ends, mixed, side="right").astype(np.int64)
        documents, visits = np.empty_like(mixed), np.empty_like(mixed)
        for source in np.unique(sources).tolist():
            of_source = self._of_sources[source]
            assert of_source is not None
            size, slots = self._sizes[source], self._slots[source]
            chosen = sources == source
            walked = pass_ * slots + mixed[chosen] - (int(self._ends[source]) - slots)
            visits[chosen], places = np.divmod(walked, size)
            documents[chosen] = of_source(places)
        return Places(sources, documents, visits)
