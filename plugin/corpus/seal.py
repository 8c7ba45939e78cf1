"""Step `seal`: the finished folder, its manifest written last.

Files of a task get a second name in the folder, so that the work may be deleted or kept: kept, a
changed tokenizer repeats the last steps only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..base.digests import file_digest, why_broken, write_digests
from ..base.files import whole_folder, write_whole
from ..data.stored.manifest import MANIFEST, PARTS, TOKENIZER, WORK
from .examples import clusters_of, duplicate_examples, first_documents_decoded
from .facts import RowNames, Work, manifest_of, tokens_by_source
from .keep import FATES, first_documents, rows_before
from .report import page
from .sign import DROPPED
from .tokens import SPLITS

APART = (WORK, MANIFEST)  # entries of the folder that digests.json does not name


def sealed_with(out: Path) -> dict[str, Any]:
    """Return the manifest of a finished folder; empty if there is none."""
    try:
        return json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def why_changed(out: Path) -> str:
    """Return which file of a finished folder is not what was written; empty if none."""
    return why_broken(out, ignored=APART)


def seal(out: Path, key: str, work: Work) -> dict[str, Any]:
    """Write the folder. Returns its manifest.

    Raises OSError; a kill at any moment leaves a folder without a manifest, which nobody reads.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    shards = [*_shards(out, work)]
    final = out / TOKENIZER
    with whole_folder(final, replaces=final.exists()) as folder:
        shutil.copytree(work.tokenizer.folder(0) / "tokenizer", folder, dirs_exist_ok=True)
    dropped = _write_dropped(out, work)
    manifest = manifest_of(key, work, shards)
    report = {
        "manifest": manifest,
        "dropped": dropped,
        "tokens_by_source": tokens_by_source(work, shards),
        "clusters": clusters_of(work),
        "duplicates": duplicate_examples(work),
        "first_documents": first_documents_decoded(out, shards),
    }
    write_whole(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_whole(out / "report.html", page(report))
    write_digests(out, ignored=APART)
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _shards(out: Path, work: Work) -> Iterator[dict[str, Any]]:
    """Give the token files their names. Yields the shards of the manifest."""
    for split in SPLITS:
        final = out / split
        with whole_folder(final, replaces=final.exists()) as folder:
            number = 0
            for task, reads in enumerate(work.listing.tasks):
                facts = work.tokens.facts(task)
                if not facts["documents"][split]:
                    continue
                name = f"{number:05d}"
                number += 1
                for part in PARTS:
                    source = work.tokens.folder(task) / f"{split}.{part}.npy"
                    _link(source, folder / f"{name}.{part}.npy")
                yield {
                    "split": split,
                    "name": name,
                    "source": reads.source,
                    "documents": facts["documents"][split],
                    "tokens": facts["tokens"][split],
                    "blake2b": file_digest(folder / f"{name}.ids.npy"),
                }


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it on a disk that has no links."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _write_dropped(out: Path, work: Work) -> dict[str, int]:
    """Write a line for every row that is not in the result. Returns reason -> rows."""
    counts: Counter[str] = Counter()
    before, firsts = rows_before(work.listing, work.sign), first_documents(work.sign)
    fate = np.load(work.keep.folder(0) / "fate.npy", mmap_mode="r")
    pairs = np.load(work.keep.folder(0) / "dropped.npy", mmap_mode="r")
    names = RowNames(work)
    part = out / f".{DROPPED}.part"
    with part.open("w", encoding="utf-8") as file:
        for task, reads in enumerate(work.listing.tasks):
            with (work.sign.folder(task) / DROPPED).open(encoding="utf-8") as lines:
                for line in lines:
                    place, number, reason = json.loads(line)
                    row = f"{work.label(reads.source, place)}:{number + before[task]}"
                    file.write(_line(row, reason, None))
                    counts[reason] += 1
            start, end = np.searchsorted(pairs[:, 0], firsts[task : task + 2])
            for document, twin in pairs[start:end].tolist():
                reason = FATES[fate[document]]
                file.write(_line(names(document), reason, names(twin)))
                counts[reason] += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, out / DROPPED)
    return dict(counts.most_common())


def _line(row: str, reason: str, twin: str | None) -> str:
    return json.dumps({"row": row, "reason": reason, "twin": twin}, ensure_ascii=False) + "\n"
