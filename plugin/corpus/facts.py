"""Facts of a finished corpus: its manifest, and the names of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.prepare_params import PrepareParams
from ..data.stored.manifest import FORMAT
from .keep import first_documents, rows_before, train_bytes
from .listing import Listing
from .sign import dropped_reasons
from .steps import CorpusStep
from .tokens import SPLITS, dtype_of

LIBRARIES = ("tokenizers", "fastokens", "transformers", "numpy", "pyarrow")
BINS = 24  # of the histogram of lengths, by powers of two


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that the steps before `seal` left."""

    params: PrepareParams
    listing: Listing
    sign: CorpusStep
    bands: CorpusStep
    keep: CorpusStep
    tokenizer: CorpusStep
    tokens: CorpusStep
    version: str  # of this program
    command: Sequence[str]

    @property
    def steps(self) -> tuple[CorpusStep, ...]:
        return self.sign, self.bands, self.keep, self.tokenizer, self.tokens

    def label(self, source: int, file: int) -> str:
        """Return the name of a file in the names of its rows."""
        found = self.listing.sources[source]
        return found.files[file].label if found.files else found.part.name


class RowNames:
    """Names of documents' rows, by the documents' numbers."""

    def __init__(self, work: Work):
        self._work = work
        self._before = rows_before(work.listing, work.sign)
        self._firsts = first_documents(work.sign)

    def task(self, document: int) -> int:
        """Return the task that read a document."""
        return int(np.searchsorted(self._firsts, document, side="right")) - 1

    def __call__(self, document: int) -> str:
        task = self.task(document)
        rows = np.load(self._work.sign.folder(task) / "row.npy", mmap_mode="r")
        file, number = rows[document - self._firsts[task]].tolist()
        source = self._work.listing.tasks[task].source
        return f"{self._work.label(source, file)}:{number + self._before[task]}"


def manifest_of(key: str, work: Work, shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of manifest.json."""
    params, keep = work.params, work.keep.facts(0)
    tokenizer = {k: v for k, v in work.tokenizer.facts(0).items() if k not in _OF_A_TASK}
    fate = np.load(work.keep.folder(0) / "fate.npy", mmap_mode="r")
    counts, edges, longest = _lengths(work)
    documents = {
        split: sum(s["documents"] for s in shards if s["split"] == split) for split in SPLITS
    }
    return {
        "format": FORMAT,
        "key": key,
        "made_by": {
            "version": work.version,
            "command": list(work.command),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
        },
        "params": params.model_dump(),
        "sources": [_source(work, number, shards) for number in range(len(work.listing.sources))],
        "normalise": {"form": params.normalise, "lowercase": params.lowercase},
        "dedup": {
            **params.dedup.model_dump(),
            "scheme": "affine32",
            "seed": params.seed,
            "exact_dropped": keep["exact duplicate"],
            "near_dropped": keep["near duplicate"],
        },
        "split": {
            "eval_share": params.eval_share,
            "own_files": work.listing.has_eval,
            "seed": params.seed,
            "eval_documents": documents["eval"],
        },
        "tokenizer": tokenizer,
        "dtype": dtype_of(tokenizer["vocab_size"]),
        "shards": list(shards),
        "totals": {
            "documents": documents["train"],
            "tokens": sum(s["tokens"] for s in shards if s["split"] == "train"),
            "eval_tokens": sum(s["tokens"] for s in shards if s["split"] == "eval"),
            "bytes": sum(train_bytes(work.sign, fate)),
            "longest": longest,
            "length_counts": counts,
            "length_edges": edges,
        },
        "stages": {step.name: _stage(step) for step in work.steps},
    }


_OF_A_TASK = ("seconds", "cpu_seconds", "load_cpu_seconds")


def _stage(step: CorpusStep) -> dict[str, Any]:
    facts = [step.facts(task) for task in range(len(step.sizes))]
    return {
        "key": step.key,
        "tasks": len(facts),
        **{name: round(sum(one.get(name, 0) for one in facts), 3) for name in _OF_A_TASK},
    }


def _source(work: Work, number: int, shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    source = work.listing.sources[number]
    facts = [
        work.sign.facts(task)
        for task, reads in enumerate(work.listing.tasks)
        if reads.source == number
    ]
    own = [shard for shard in shards if shard["source"] == number]
    return {
        "spec": source.part.name,
        "weight": source.part.weight,
        "files": [
            {"name": file.label, "bytes": file.bytes, "blake2b": file.blake2b, "split": file.split}
            for file in source.files
        ]
        or [{"name": source.part.name, "bytes": 0, "blake2b": ""}],
        "rows": sum(one["rows"] for one in facts),
        "read": sum(one["documents"] for one in facts),
        "documents": sum(shard["documents"] for shard in own),
        "tokens": sum(shard["tokens"] for shard in own),
        "bad": dropped_reasons(facts),
    }


def tokens_by_source(work: Work, shards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each source, its tokens and its share of a training pass by its weight."""
    sources = work.listing.sources
    tokens = [
        sum(s["tokens"] for s in shards if s["source"] == n and s["split"] == "train")
        for n in range(len(sources))
    ]
    weighed = [count * source.part.weight for count, source in zip(tokens, sources, strict=True)]
    return [
        {
            "source": source.part.name,
            "tokens": count,
            "weight": source.part.weight,
            "share_of_a_pass": round(one / max(1, sum(weighed)), 6),
        }
        for source, count, one in zip(sources, tokens, weighed, strict=True)
    ]


def _lengths(work: Work) -> tuple[list[int], list[int], int]:
    """Count the training documents by their tokens: (counts, edges, longest)."""
    edges = np.array([0, *(2**power for power in range(BINS))], np.int64)
    counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
    longest = 0
    for task in range(len(work.listing.tasks)):
        facts = work.tokens.facts(task)
        if facts["documents"]["train"]:
            offsets = np.load(work.tokens.folder(task) / "train.offsets.npy")
            lengths = np.diff(offsets)
            counts += np.histogram(np.minimum(lengths, edges[-1] - 1), edges)[0]
            longest = max(longest, int(lengths.max()))
    last = int(np.flatnonzero(counts).max(initial=0)) + 1
    return counts[:last].tolist(), edges[: last + 1].tolist(), longest
