"""MinHash signatures of texts: word or character n-grams, in bulk.

D documents, U units (words or characters), K shingles of n units, P = bands x rows permutations.
The scheme is datasketch 2's `affine32`, bit for bit: a shingle's 32-bit hash is mixed once by
MurmurHash3's finaliser, then P affine maps h -> a h + b mod 2^32 with odd a, and the least value of
each is kept (Broder 1997, "On the resemblance and containment of documents").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

WINDOW = 1 << 19  # characters of a text that are hashed together
CHUNK = 1 << 20  # characters of texts that are hashed together: their hashes stay in the cache
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Scheme:
    """Settings of a signature."""

    ngram: int = 5
    unit: str = "word"  # or character
    bands: int = 25
    rows: int = 10
    seed: int = 1

    @cached_property
    def permutations(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Draw the factors and offsets of the affine maps, [P] each, as datasketch draws them."""
        draw, count = np.random.RandomState(self.seed), self.bands * self.rows
        factors = draw.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        return factors, draw.randint(0, 1 << 32, count, dtype=np.uint32)


def sign(texts: Sequence[str], scheme: Scheme) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Return the signatures [D, P] of texts, and which texts [D] have a full shingle.

    The memory does not grow with the length of a text: it is hashed in windows.
    """
    signatures = np.full((len(texts), scheme.bands * scheme.rows), 2**32 - 1, np.uint32)
    signed = np.zeros(len(texts), bool)
    for owners, pieces in _chunks(texts, scheme):
        hashes, counts = shingle_hashes(pieces, scheme)
        has = np.flatnonzero(counts)
        if has.size:
            places = np.array(owners)[has]
            least = least_values(hashes, (np.cumsum(counts) - counts)[has], scheme)
            signatures[places] = np.minimum(signatures[places], least)
            signed[places] = True
    return signatures, signed


def least_values(
    hashes: NDArray[np.uint32], starts: NDArray[np.int64], scheme: Scheme
) -> NDArray[np.uint32]:
    """Return the least value of each permutation over runs of shingle hashes, [runs, P].

    `hashes` [K]; `starts` [runs] are the first places of the runs, ascending. It equals
    datasketch.MinHash(P, seed, scheme="affine32").hashvalues of each run.
    """
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    factors, offsets = scheme.permutations
    least = np.empty((factors.size, starts.size), np.uint32)
    value = np.empty_like(mixed)
    for place, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
        np.multiply(mixed, factor, out=value)
        np.add(value, offset, out=value)
        np.minimum.reduceat(value, starts, out=least[place])
    return least.T


def shingle_hashes(
    texts: Sequence[str], scheme: Scheme
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the hashes [K] of all shingles, text after text, and the number of each text's, [D]."""
    hashes, ends = _word_hashes(texts) if scheme.unit == "word" else _characters(texts)
    units = np.diff(ends, prepend=0)
    counts = np.maximum(units - scheme.ngram + 1, 0)
    if hashes.size < scheme.ngram:
        return np.zeros(0, np.uint32), counts
    factors = np.multiply.accumulate(np.full(scheme.ngram, _ODD))
    count = hashes.size - scheme.ngram + 1  # shingles, those across two texts included
    sums = np.zeros(count, np.uint64)
    for place, factor in enumerate(factors):
        sums += factor * hashes[place : place + count]
    inside = np.zeros(hashes.size + 1, np.int32)
    starts = ends - units
    has = counts > 0
    np.add.at(inside, starts[has], 1)
    np.add.at(inside, (starts + counts)[has], -1)
    sums = sums[np.cumsum(inside)[:count] > 0]
    sums ^= sums >> np.uint64(33)
    sums *= np.uint64(0xFF51AFD7ED558CCD)
    return (sums >> np.uint64(32)).astype(np.uint32), counts


def band_keys(signatures: NDArray[np.uint32], scheme: Scheme) -> NDArray[np.uint64]:
    """Return a 64-bit key of each band's rows, [bands, D]: equal keys are candidate pairs."""
    parts = signatures.reshape(-1, scheme.bands, scheme.rows)
    keys = np.zeros((scheme.bands, parts.shape[0]), np.uint64)
    for row in range(scheme.rows):
        keys ^= keys >> np.uint64(29)
        keys *= _ODD
        keys += parts[:, :, row].T
    keys ^= keys >> np.uint64(32)
    return keys * _ODD


def _word_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return a hash of every word, and the place after each text's last word, [D]."""
    trimmed = pc.call_function("utf8_trim_whitespace", [pa.array(texts, pa.large_string())])
    words: Any = pc.call_function("utf8_split_whitespace", [trimmed])
    ends = words.offsets.to_numpy()[1:].astype(np.int64)
    coded = words.values.dictionary_encode()
    known = [xxhash.xxh64_intdigest(word.encode()) for word in coded.dictionary.to_pylist()]
    hashes = np.array(known, np.uint64)[coded.indices.to_numpy()]
    return hashes, ends


def _characters(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return a hash of every character, and the place after each text's last one, [D]."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).astype(np.uint64)
    return (codes + np.uint64(1)) * np.uint64(0xC2B2AE3D27D4EB4F), np.cumsum(
        [len(text) for text in texts]
    )


def _chunks(texts: Sequence[str], scheme: Scheme) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (the place of each piece's text, pieces): some short texts, or one window of a long."""
    owners: list[int] = []
    pieces: list[str] = []
    size = 0
    windows = (
        (place, piece) for place, text in enumerate(texts) for piece in _windows(text, scheme)
    )
    for place, piece in chain(windows, [(-1, "")]):
        # Two windows of one text never share a chunk: `sign` writes each of its texts once.
        full = size + len(piece) > CHUNK or (owners and owners[-1] == place)
        if pieces and (full or place < 0):
            yield owners, pieces
            owners, pieces, size = [], [], 0
        owners.append(place)
        pieces.append(piece)
        size += len(piece)


def _windows(text: str, scheme: Scheme) -> Iterator[str]:
    """Cut a long text into overlapping windows that have its shingles and no others."""
    start, overlap = 0, scheme.ngram - 1
    while len(text) - start > WINDOW:
        end = start + WINDOW
        if scheme.unit == "character":
            yield text[start:end]
            start = end - overlap
            continue
        found = _SPACE.search(text, end)
        end = found.start() if found else len(text)
        words = text[start:end].rsplit(None, overlap) if overlap else [text[start:end]]
        if len(words) <= overlap:  # words of half a million characters: no window is small
            break
        yield text[start:end]
        start += len(words[0])
    yield text[start:]
