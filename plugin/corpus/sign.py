"""Step `sign`: what each document is, so that duplicates can be found without its text.

D documents of a task, P values of a signature, B bands. Files of a task: digest.npy uint64 [D, 2],
row.npy int64 [D, 2] (file of the source, row of the task), bytes.npy int64 [D] and, for near
duplicates, signed.npy bool [D], low.npy uint8 [D, P], keys.npy uint64 [B, D]. dropped.jsonl has the
rows without a document.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.prepare_params import PrepareParams
from .listing import Listing
from .rows import RawRow, lines_of, read_task
from .signatures import Scheme, band_keys, sign

TOGETHER = 2048  # documents that are signed together
CHARACTERS = 1 << 23  # and no more once they have this many
DROPPED = "dropped.jsonl"


def scheme_of(params: PrepareParams) -> Scheme:
    dedup = params.dedup
    return Scheme(dedup.ngram, dedup.unit, dedup.bands, dedup.rows, params.seed % 2**32)


def normaliser(params: PrepareParams) -> Any:
    """Return the function that makes texts comparable."""
    form: Any = params.normalise.upper()

    def normalised(text: str) -> str:
        text = text.strip()
        if form != "NONE" and not text.isascii():
            text = unicodedata.normalize(form, text)
        return text.lower() if params.lowercase else text

    return normalised


@dataclass
class _Documents:
    """Documents of a task so far."""

    digests: list[NDArray[np.uint64]] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    sizes: list[NDArray[np.int64]] = field(default_factory=list)
    signed: list[NDArray[np.bool_]] = field(default_factory=list)
    low: list[NDArray[np.uint8]] = field(default_factory=list)
    keys: list[NDArray[np.uint64]] = field(default_factory=list)


def run_sign(params: PrepareParams, listing: Listing, number: int, folder: Path) -> dict[str, Any]:
    """Sign the documents of reading task `number`. Returns counts of its rows."""
    task, found = listing.tasks[number], _Documents()
    scheme, normalised = scheme_of(params), normaliser(params)
    reasons: Counter[str] = Counter()
    rows = words = characters = 0
    with (folder / DROPPED).open("w", encoding="utf-8") as dropped:
        for chunk in row_chunks(read_task(listing, task, params)):
            rows += len(chunk)
            kept = [row for row in chunk if not row.reason]
            for row in chunk:
                if row.reason:
                    reasons[row.reason] += 1
                    dropped.write(json.dumps([row.file, row.number, row.reason]) + "\n")
            texts = [normalised(row.text) for row in kept]
            words += sum(text.count(" ") + 1 for text in texts)
            characters += sum(map(len, texts))
            _add(found, kept, texts, scheme, near=params.dedup.near)
    _save(found, folder, scheme, near=params.dedup.near)
    return {
        "rows": rows,
        "documents": sum(map(len, found.rows)),
        "reasons": dict(reasons),
        "words": words,
        "characters": characters,
        "lines": lines_of(listing, task) if task.span else 0,
    }


def dropped_reasons(facts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return {reason: rows} over the facts of some tasks."""
    found: Counter[str] = Counter()
    for one in facts:
        found.update(one["reasons"])
    return dict(found)


def row_chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """Yield rows in groups of bounded size."""
    group: list[RawRow] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.text)
        if len(group) == TOGETHER or size >= CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _add(
    found: _Documents, rows: list[RawRow], texts: list[str], scheme: Scheme, *, near: bool
) -> None:
    raw = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    found.digests.append(np.frombuffer(raw, np.uint64).reshape(-1, 2))
    places = np.array([(row.file, row.number) for row in rows], np.int64).reshape(-1, 2)
    found.rows.append(places)
    found.sizes.append(np.array([len(row.text.encode()) for row in rows], np.int64))
    if near:
        signatures, signed = sign(texts, scheme)
        found.signed.append(signed)
        found.low.append(signatures.astype(np.uint8))
        found.keys.append(band_keys(signatures, scheme))


def _save(found: _Documents, folder: Path, scheme: Scheme, *, near: bool) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "digest": np.concatenate([np.zeros((0, 2), np.uint64), *found.digests]),
        "row": np.concatenate([np.zeros((0, 2), np.int64), *found.rows]),
        "bytes": np.concatenate([np.zeros(0, np.int64), *found.sizes]),
    }
    if near:
        values = scheme.bands * scheme.rows
        arrays |= {
            "signed": np.concatenate([np.zeros(0, bool), *found.signed]),
            "low": np.concatenate([np.zeros((0, values), np.uint8), *found.low]),
            "keys": np.concatenate([np.zeros((scheme.bands, 0), np.uint64), *found.keys], axis=1),
        }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
