"""Step `tokens`: the ids of every document that stays, without special tokens and not cut.

Files of a task, for each split that it has documents of: <split>.ids.npy [N], <split>.offsets.npy
int64 [S + 1], <split>.source.npy int64 [S, 2] (file of the source, row of it from 1).
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config.prepare_params import PrepareParams
from .keep import EVAL, TRAIN, first_documents, rows_before
from .listing import Listing
from .rows import read_task
from .sign import row_chunks
from .steps import CorpusStep
from .tokenizer import Load

if TYPE_CHECKING:
    from ..data.chat import ChatFormat

SPLITS = {"train": TRAIN, "eval": EVAL}
CHECKED = 16  # documents of each task whose ids are compared; `tokenizer` compared more


def dtype_of(vocab_size: int) -> str:
    """Return the smallest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def run_tokens(
    params: PrepareParams,
    listing: Listing,
    sign: CorpusStep,
    keep: CorpusStep,
    tokenizer: CorpusStep,
    load: Load,
    number: int,
    folder: Path,
) -> dict[str, Any]:
    """Encode the documents of reading task `number`."""
    began = time.process_time()
    from ..data.bulk_tokenizer import BulkTokenizer

    facts = tokenizer.facts(0)
    bulk = BulkTokenizer(_chat_format(load, tokenizer.folder(0) / "tokenizer"), checks=CHECKED)
    loading = time.process_time() - began
    dtype = np.dtype(dtype_of(facts["vocab_size"]))
    fate = np.load(keep.folder(0) / "fate.npy", mmap_mode="r")
    document, before = int(first_documents(sign)[number]), rows_before(listing, sign)[number]
    written = {split: _Written(dtype) for split in SPLITS}
    for chunk in row_chunks(read_task(listing, listing.tasks[number], params)):
        kept = [row for row in chunk if not row.reason]
        fates = fate[document : document + len(kept)].tolist()
        document += len(kept)
        for split, kind in SPLITS.items():
            rows = [row for row, one in zip(kept, fates, strict=True) if one == kind]
            if rows:
                places = np.array([(row.file, row.number + before) for row in rows], np.int64)
                written[split].add(*bulk.encode([row.text for row in rows]), places)
    counts = {split: one.save(folder, split) for split, one in written.items()}
    return {
        "engine": bulk.engine,
        "load_cpu_seconds": round(loading, 3),  # of imports and tokenizer, whatever it encodes
        "documents": {split: documents for split, (documents, _) in counts.items()},
        "tokens": {split: tokens for split, (_, tokens) in counts.items()},
    }


@lru_cache(maxsize=1)
def _chat_format(load: Load, folder: Path) -> ChatFormat:
    """Return the notation of a tokenizer, loaded once in a process, which does many tasks."""
    from ..data.chat import ChatFormat

    return ChatFormat(load(str(folder), "tokenizer_name"))


class _Written:
    """Ids of one split of a task so far."""

    def __init__(self, dtype: np.dtype[Any]):
        self._dtype = dtype
        self._ids: list[NDArray[Any]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._places: list[NDArray[np.int64]] = []

    def add(
        self, ids: NDArray[np.uint32], offsets: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        self._ids.append(ids.astype(self._dtype))
        self._lengths.append(np.diff(offsets))
        self._places.append(places)

    def save(self, folder: Path, split: str) -> tuple[int, int]:
        """Write the files of a split that has documents. Returns (documents, tokens)."""
        if not self._ids:
            return 0, 0
        lengths = np.concatenate(self._lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        np.save(folder / f"{split}.ids.npy", np.concatenate(self._ids))
        np.save(folder / f"{split}.offsets.npy", offsets)
        np.save(folder / f"{split}.source.npy", np.concatenate(self._places))
        return lengths.size, int(offsets[-1])
