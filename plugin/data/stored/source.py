"""Sources of packs whose tokens are stored: a prepared folder, or documents of this run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..documents import Document, Documents
from .order import Order
from .split import StoredSplit

CHUNK = 1024  # positions whose documents are found in one call


@dataclass(frozen=True)
class StoredText:
    """A text of a prepared folder, to be opened, ended and split into documents."""

    number: int  # among the texts of its split
    visit: int  # earlier passes over it, of which its noise is a function
    ids: NDArray[Any]  # [T] without special tokens


@dataclass(frozen=True)
class StoredDocument:
    """A document that was tokenised before the first step."""

    visit: int  # earlier passes over it, of which its noise is a function
    document: Document


def stored_texts(
    split: StoredSplit, order: Order
) -> Callable[[int, int, int], Iterator[StoredText]]:
    """Return the reader of a prepared split, whose passes have the given order."""

    def read(pass_: int, first: int, every: int) -> Iterator[StoredText]:
        for positions in _chunks(first, every, len(order)):
            places = order.at(pass_, positions)
            numbers = split.numbers(places.sources, places.documents)
            for number, visit in zip(numbers.tolist(), places.visits.tolist(), strict=True):
                yield StoredText(number, visit, split.tokens(number))

    return read


def stored_documents(
    documents: Documents, order: Order
) -> Callable[[int, int, int], Iterator[StoredDocument]]:
    """Return the reader of a store of one source, whose passes have the given order."""

    def read(pass_: int, first: int, every: int) -> Iterator[StoredDocument]:
        for positions in _chunks(first, every, len(order)):
            places = order.at(pass_, positions)
            pairs = zip(places.documents.tolist(), places.visits.tolist(), strict=True)
            for number, visit in pairs:
                yield StoredDocument(visit, documents[number])

    return read


def _chunks(first: int, every: int, end: int) -> Iterator[NDArray[np.int64]]:
    """Yield the positions `first`, `first + every`, ... below `end`, CHUNK at a time."""
    for start in range(first, end, every * CHUNK):
        yield np.arange(start, min(end, start + every * CHUNK), every, dtype=np.int64)
