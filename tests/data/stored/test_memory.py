"""Memory and time of a stream over a prepared folder: the same for any number of documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.stored_folder import StoredPart, write_stored
from helpers.support import ROOT, run_python

PROGRAM = """\
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from plugin.data.prepare import Encoding
from plugin.data.stored.manifest import read_manifest
from plugin.data.stored.order import Order
from plugin.data.stored.source import stored_texts
from plugin.data.stored.split import StoredSplit, check_shards
from plugin.data.stream import Stream, StreamPlan

class Chat:
    opening, fill_id = [2], 3

began, folder = time.perf_counter(), Path({folder!r})
manifest = read_manifest(folder)
check_shards(folder, manifest)
checked = time.perf_counter()
split = StoredSplit(folder, manifest, "train")
source = stored_texts(split, Order(split.sizes, [1.0], 1))
how = Encoding(max_length=1024, stage="pretrain")
stream = Stream(source, Chat(), how, StreamPlan(8192, 1, 1), dataset="d")
stream.next_step()
first = time.perf_counter()
used = [sum(one.ids.size for one, _ in stream.next_step()[0]) for _ in range(400)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({{
    "documents": len(split), "peak_mb": round(peak, 1), "used": sum(used),
    "check_s": round(checked - began, 3), "first_pack_s": round(first - checked, 3),
    "pack_s": round((time.perf_counter() - first) / 400, 5),
}}))
"""


def write_large(folder: Path, documents: int, a_shard: int = 100_000) -> Path:
    """Write shards of random documents, 32 tokens on average, without a Python list of any."""
    write_stored(folder, [StoredPart([[5, 6]])])
    manifest = json.loads((folder / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    rng, shards = np.random.default_rng(0), []
    for number in range(-(-documents // a_shard)):
        count = min(a_shard, documents - number * a_shard)
        ends = np.concatenate([[0], np.cumsum(rng.integers(1, 64, count))])
        ids = rng.integers(5, 60_000, int(ends[-1]), dtype=np.uint16)
        path = folder / "train" / f"{number:05}.ids.npy"
        np.save(path, ids)
        np.save(folder / "train" / f"{number:05}.offsets.npy", ends)
        rows = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
        np.save(folder / "train" / f"{number:05}.source.npy", rows)
        facts = {"name": f"{number:05}", "documents": count, "tokens": int(ids.size)}
        shards.append(shard | facts | {"blake2b": digest_of(path)})
    manifest["shards"] = shards
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def digest_of(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@pytest.mark.slow
def test_memory_is_flat_from_100k_to_1m_documents(tmp_path: Path) -> None:
    found = []
    for documents in (100_000, 1_000_000):
        folder = write_large(tmp_path / str(documents), documents)
        done = run_python(PROGRAM.format(root=str(ROOT), folder=str(folder)), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    small, large = found
    assert large["documents"] == 10 * small["documents"]
    assert abs(large["peak_mb"] - small["peak_mb"]) < 50
    assert small["used"] > 0.99 * 400 * 8192
    assert large["first_pack_s"] < 2 * small["first_pack_s"] + 0.5
