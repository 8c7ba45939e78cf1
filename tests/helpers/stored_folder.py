"""Writer of small prepared folders in the format that `prepare` writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from plugin.base.digests import write_digests
from plugin.data.tokenizer_digest import tokenizer_digest

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class StoredPart:
    """A source of a prepared folder: its documents of both splits and its weight."""

    train: Ids
    evaluation: Ids = ()
    weight: float = 1.0
    spec: str = "a.jsonl"
    more: dict[str, Any] = field(default_factory=dict)


def write_stored(
    folder: Path,
    parts: Sequence[StoredPart],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    a_shard: int = 50,
    dtype: str = "uint16",
    seed: int = 1,
) -> Path:
    """Write the folder, `a_shard` documents a shard; without a tokenizer, a made-up digest of it."""
    shards: list[dict[str, Any]] = []
    for split, of_split in (("train", "train"), ("eval", "evaluation")):
        (folder / split).mkdir(parents=True)
        number = 0
        for source, part in enumerate(parts):
            documents: Ids = getattr(part, of_split)
            for first in range(0, len(documents), a_shard):
                some = documents[first : first + a_shard]
                path = folder / split / f"{number:05}.ids.npy"
                ids = np.concatenate([np.asarray(one, dtype=dtype) for one in some])
                np.save(path, ids)
                ends = np.cumsum([0, *map(len, some)]).astype(np.int64)
                np.save(folder / split / f"{number:05}.offsets.npy", ends)
                rows = [(0, first + place + 1) for place in range(len(some))]
                source_rows = np.array(rows, dtype=np.int64)
                np.save(folder / split / f"{number:05}.source.npy", source_rows)
                digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
                shards.append(
                    {
                        "split": split,
                        "name": f"{number:05}",
                        "source": source,
                        "documents": len(some),
                        "tokens": int(ids.size),
                        "blake2b": digest,
                    }
                )
                number += 1
    digest, size = "0" * 32, 300
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
        digest, size = tokenizer_digest(tokenizer), len(tokenizer)
    every = [one for part in parts for one in (*part.train, *part.evaluation)]
    manifest = {
        "format": 1,
        "key": hashlib.blake2b(str((seed, every)).encode(), digest_size=16).hexdigest(),
        "made_by": {"version": "test", "command": "test", "libraries": {}},
        "sources": [
            {
                "spec": part.spec,
                "weight": part.weight,
                "files": [{"name": part.spec, "bytes": 1, "blake2b": "0" * 32}],
                "rows": len(part.train) + len(part.evaluation),
                "documents": len(part.train) + len(part.evaluation),
                "tokens": sum(map(len, (*part.train, *part.evaluation))),
                "bad": {},
                **part.more,
            }
            for part in parts
        ],
        "tokenizer": {"digest": digest, "vocab_size": size, "kind": "trained"},
        "dtype": dtype,
        "split": {
            "eval_share": 0.1,
            "seed": seed,
            "eval_documents": sum(len(part.evaluation) for part in parts),
        },
        "shards": shards,
        "totals": {
            "documents": len(every),
            "tokens": sum(map(len, every)),
            "bytes": 0,
            "longest": max(map(len, every), default=0),
        },
        "of_a_later_version": True,
    }
    write_digests(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def random_ids(
    count: int, *, seed: int = 0, mean: float = 20.0, first: int = 5, vocabulary: int = 300
) -> list[list[int]]:
    """Draw documents of about `mean` ids, without special tokens."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, rng.lognormal(np.log(mean), 0.8, count)).astype(int)
    return [rng.integers(first, vocabulary, size).tolist() for size in sizes.tolist()]
