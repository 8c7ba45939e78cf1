"""Examples of a corpus for its report: duplicates with their texts, first documents decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .facts import RowNames, Work
from .keep import CLUSTERS, FATES, first_documents
from .rows import numbered_documents

PAIRS = 20
READ_TASKS = 4  # that are read again for the texts of pairs
SHOWN = 1200  # characters of a text


def clusters_of(work: Work) -> dict[str, Any]:
    """Return the clusters of near-duplicates: their sizes, and the first row of the largest."""
    found = json.loads((work.keep.folder(0) / CLUSTERS).read_text(encoding="utf-8"))
    names = RowNames(work)
    return found | {"largest": [[names(first), *rest] for first, *rest in found["largest"]]}


def duplicate_examples(work: Work) -> list[dict[str, Any]]:
    """Return up to PAIRS pairs: the dropped row and the kept one, with the starts of their texts.

    Near duplicates come first. Their texts are read again from a few tasks only, so that a large
    corpus is not read once more.
    """
    fate = np.load(work.keep.folder(0) / "fate.npy", mmap_mode="r")
    pairs = np.load(work.keep.folder(0) / "dropped.npy", mmap_mode="r")
    names = RowNames(work)
    chosen: list[tuple[int, int]] = []
    tasks: set[int] = set()
    # A spread over the pairs: neighbours often belong to one cluster.
    places = np.unique(np.linspace(0, max(0, len(pairs) - 1), 50 * PAIRS).astype(int))
    some = pairs[places[: len(pairs)]] if len(pairs) else pairs
    ranks = [-int(fate[document]) for document in some[:, 0]]
    for _, (document, twin) in sorted(zip(ranks, some.tolist(), strict=True), key=lambda x: x[0]):
        read = tasks | {names.task(document), names.task(twin)}
        if len(read) <= READ_TASKS and len(chosen) < PAIRS:
            chosen.append((document, twin))
            tasks = read
    texts = _texts(work, {one for pair in chosen for one in pair}, tasks)
    return [
        {
            "reason": FATES[fate[document]],
            "dropped": names(document),
            "kept": names(twin),
            "dropped_text": texts[document],
            "kept_text": texts[twin],
        }
        for document, twin in chosen
    ]


def _texts(work: Work, documents: set[int], tasks: set[int]) -> dict[int, str]:
    firsts = first_documents(work.sign)
    found: dict[int, str] = {}
    for task in sorted(tasks):
        reads, first = work.listing.tasks[task], int(firsts[task])
        for document, text in numbered_documents(work.listing, reads, work.params, first):
            if document in documents:
                found[document] = text[:SHOWN]
    return found


def first_documents_decoded(out: Path, shards: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Decode the first stored document of each split: what training will see."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    found: dict[str, str] = {}
    for shard in shards:
        if shard["split"] not in found:
            stem = out / shard["split"] / shard["name"]
            ids = np.load(f"{stem}.ids.npy", mmap_mode="r")
            offsets = np.load(f"{stem}.offsets.npy", mmap_mode="r")
            found[shard["split"]] = str(tokenizer.decode(ids[: offsets[1]].tolist()))[:SHOWN]
    return found
