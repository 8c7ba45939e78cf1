"""Steps `bands` and `keep`: duplicates across all tasks, and the fate of every document.

D documents of all tasks, numbered in the order of the listing. Files of `keep`: fate.npy uint8 [D],
dropped.npy int64 [dropped, 2] (document, the kept document that it repeats).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.prepare_params import PrepareParams
from .duplicates import (
    candidate_edges,
    describe_clusters,
    exact_edges,
    neighbours_only,
    smallest_members,
    verified_edges,
)
from .listing import Listing
from .steps import CorpusStep

TRAIN, EVAL, EXACT, NEAR = range(4)  # fates
FATES = ("train", "eval", "exact duplicate", "near duplicate")
CLUSTERS = "clusters.json"


def first_documents(sign: CorpusStep) -> NDArray[np.int64]:
    """Return the number of each task's first document, and behind them that of all documents."""
    counts = [sign.facts(task)["documents"] for task in range(len(sign.sizes))]
    return np.cumsum([0, *counts], dtype=np.int64)


def train_bytes(sign: CorpusStep, fate: NDArray[np.uint8]) -> list[int]:
    """Return the bytes of each task's training texts; `fate` [D] of all documents."""
    firsts = first_documents(sign)
    return [
        int(np.load(sign.folder(n) / "bytes.npy")[fate[firsts[n] : firsts[n + 1]] == TRAIN].sum())
        for n in range(len(sign.sizes))
    ]


def run_bands(params: PrepareParams, sign: CorpusStep, band: int, folder: Path) -> dict[str, Any]:
    """Find the verified pairs of one band: edges.npy int64 [E, 2], alike.npy float32 [E]."""
    firsts = first_documents(sign)
    tasks = range(len(sign.sizes))
    keys = np.concatenate(
        [np.load(sign.folder(n) / "keys.npy", mmap_mode="r")[band] for n in tasks]
    )
    signed = np.concatenate([np.load(sign.folder(n) / "signed.npy") for n in tasks])
    places = np.flatnonzero(signed)
    edges = candidate_edges(keys[places], places)
    del keys, signed
    found, alike = verified_edges(edges, _low_bytes(sign, firsts), params.dedup.verify)
    np.save(folder / "edges.npy", found)
    np.save(folder / "alike.npy", alike.astype(np.float32))
    return {"candidates": len(edges), "edges": len(found)}


def _low_bytes(
    sign: CorpusStep, firsts: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    def rows(documents: NDArray[np.int64]) -> NDArray[np.uint8]:
        tasks = np.searchsorted(firsts, documents, side="right") - 1
        parts: NDArray[np.uint8] | None = None
        for task in np.unique(tasks).tolist():
            chosen = tasks == task
            # Mapped anew for each reading: pages that were touched count as this process's memory.
            low = np.load(sign.folder(task) / "low.npy", mmap_mode="r")
            if parts is None:
                parts = np.empty((documents.size, low.shape[1]), np.uint8)
            parts[chosen] = low[documents[chosen] - firsts[task]]
        return np.zeros((0, 0), np.uint8) if parts is None else parts

    return rows


def run_keep(
    params: PrepareParams,
    listing: Listing,
    sign: CorpusStep,
    bands: CorpusStep,
    number: int,
    folder: Path,
) -> dict[str, Any]:
    """Decide the fate of every document."""
    firsts = first_documents(sign)
    count = int(firsts[-1])
    digests = np.concatenate(
        [np.load(sign.folder(task) / "digest.npy") for task in range(len(sign.sizes))]
    )
    exact = exact_edges(digests) if params.dedup.exact else np.zeros((0, 2), np.int64)
    near, alike = _edges_of(bands)
    twins = smallest_members(count, exact)
    was_exact = twins != np.arange(count)
    if params.dedup.keep == "cluster":
        twins = smallest_members(count, np.concatenate([exact, near]))
    else:
        # a copy of a document has its neighbours
        heads = np.unique(np.sort(twins[near], axis=1), axis=0)
        twins = neighbours_only(count, heads[heads[:, 0] < heads[:, 1]])[twins]
    fate = np.where(_held_out(params, listing, firsts, digests), EVAL, TRAIN).astype(np.uint8)
    dropped = np.flatnonzero(twins != np.arange(count))
    fate[dropped] = np.where(was_exact[dropped], EXACT, NEAR)
    np.save(folder / "fate.npy", fate)
    np.save(folder / "dropped.npy", np.stack([dropped, twins[dropped]], 1))
    clusters = describe_clusters(smallest_members(count, near), near, alike)
    (folder / CLUSTERS).write_text(json.dumps(clusters.as_json()), encoding="utf-8")
    return {name: int((fate == place).sum()) for place, name in enumerate(FATES)}


def _edges_of(bands: CorpusStep) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs of all bands once each, [E, 2], and their similarities, [E]."""
    tasks = range(len(bands.sizes))
    edges = np.concatenate(
        [np.zeros((0, 2), np.int64), *(np.load(bands.folder(n) / "edges.npy") for n in tasks)]
    )
    alike = np.concatenate([np.zeros(0), *(np.load(bands.folder(n) / "alike.npy") for n in tasks)])
    found, places = np.unique(edges, axis=0, return_index=True)
    return found, alike[places]


def _held_out(
    params: PrepareParams, listing: Listing, firsts: NDArray[np.int64], digests: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Choose the documents held out: those of eval splits, or a share by their digests."""
    if listing.has_eval:
        held = np.zeros(len(digests), bool)
        for number, task in enumerate(listing.tasks):
            held[firsts[number] : firsts[number + 1]] = task.split == "eval"
        return held
    # The digest is random already; the seed chooses another share of it.
    mixed = (digests[:, 0] ^ np.uint64(params.seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(11)) < np.uint64(round(params.eval_share * 2**53))


def rows_before(listing: Listing, sign: CorpusStep) -> list[int]:
    """Return, for each task, the rows of its file that lie before its bytes."""
    read: dict[tuple[int, tuple[int, ...]], int] = {}
    found: list[int] = []
    for number, task in enumerate(listing.tasks):
        place = (task.source, task.files)
        found.append(read.get(place, 0) if task.span else 0)
        if task.span:
            read[place] = found[-1] + sign.facts(number)["lines"]
    return found
