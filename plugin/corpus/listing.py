"""List of what `prepare` reads: files, their digests, and the tasks that share the reading."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..base.errors import data_error
from ..base.files import write_whole
from ..data.files.compressed import data_suffix, is_compressed
from ..data.files.folder import Split
from ..data.hub import hub_split
from ..data.mixture import Part, parse_mixture
from ..data.sources import row_label, split_files, unreadable

FIELD = "dataset_name"
TASK_BYTES = 64 << 20  # bytes of a task: a minute or so of work
FILES = "files.json"  # digests of earlier runs, with the size and time of each file


@dataclass(frozen=True)
class SourceFile:
    """A file as it was listed."""

    path: str
    label: str  # in the names of rows
    bytes: int
    mtime_ns: int
    blake2b: str
    split: Split


@dataclass(frozen=True)
class Source:
    """A part of the mixture."""

    part: Part
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class ReadTask:
    """Rows that are read together: of some files, of bytes of one, or of a hub dataset."""

    source: int
    split: Split
    files: tuple[int, ...]  # numbers among the source's files; none for a hub dataset
    span: tuple[int, int] | None = None
    limit: int | None = None  # rows


@dataclass(frozen=True)
class Listing:
    """Sources and reading tasks, in the order in which documents are numbered.

    Documents of eval splits come first, so that they survive their copies in the training data.
    """

    sources: tuple[Source, ...]
    tasks: tuple[ReadTask, ...]

    @property
    def has_eval(self) -> bool:
        """Tell whether the data has an eval split of its own."""
        return any(task.split == "eval" for task in self.tasks)

    def size(self, task: ReadTask) -> int:
        """Return the bytes that a task reads, at least 1."""
        if task.span:
            return task.span[1] - task.span[0]
        files = self.sources[task.source].files
        return sum(files[file].bytes for file in task.files) or 1

    def facts(self) -> list[Any]:
        """Return all that shapes what the tasks read, as JSON values."""
        sources = [
            [source.part.name if not source.files else "", source.part.config]
            + [[file.label, file.bytes, file.blake2b, file.split] for file in source.files]
            for source in self.sources
        ]
        tasks = [
            [task.source, task.split, task.files, task.span, task.limit] for task in self.tasks
        ]
        return [sources, tasks]


def list_sources(spec: str, work: Path, *, verify: bool, task_bytes: int = TASK_BYTES) -> Listing:
    """List the files of a mixture with their digests, and cut them into tasks.

    Digests of an earlier run, kept in `work`, are taken for files of equal size and time, unless
    `verify`. Raises JobError (exit 2 for the grammar, 3 for the data).
    """
    parts = parse_mixture(spec, weights=True)
    splits: tuple[Split, ...] = ("eval", "train")
    by_split = [split_files(parts, split) for split in splits]
    paths: list[list[tuple[str, Split]]] = [
        [(str(path), split) for split, of in zip(splits, by_split, strict=True) for path in of[n]]
        for n in range(len(parts))
    ]
    digests = _digests([path for some in paths for path, _ in some], work, verify=verify)
    names = Counter(Path(path).name for some in paths for path, _ in some)
    sources: list[Source] = []
    for part, some in zip(parts, paths, strict=True):
        files = [
            SourceFile(path, row_label(Path(path), names), *digests[path], split)
            for path, split in some
        ]
        sources.append(Source(part, tuple(files)))
    tasks = [
        task
        for split in splits
        for number, source in enumerate(sources)
        for task in _tasks(number, source, split, task_bytes)
    ]
    if not any(task.split == "train" for task in tasks):
        raise data_error(FIELD, "data to train on", f"{spec}, which has none")
    return Listing(tuple(sources), tuple(tasks))


def _tasks(number: int, source: Source, split: Split, task_bytes: int) -> Iterator[ReadTask]:
    part, limit = source.part, source.part.limit(split)
    if part.path is None:
        if hub_split(part.name, part.config, split):
            yield ReadTask(number, split, (), limit=limit)
        return
    files = [place for place, file in enumerate(source.files) if file.split == split]
    if limit is not None:  # its rows are counted from the first file on
        yield ReadTask(number, split, tuple(files), limit=limit)
        return
    for place in files:
        size = source.files[place].bytes
        path = Path(source.files[place].path)
        cuts = max(1, size // task_bytes)
        if data_suffix(path) != ".jsonl" or is_compressed(path) or cuts == 1:
            yield ReadTask(number, split, (place,))
            continue
        borders = [size * cut // cuts for cut in range(cuts + 1)]
        yield from (ReadTask(number, split, (place,), span) for span in pairwise(borders))


def _digests(paths: list[str], work: Path, *, verify: bool) -> dict[str, tuple[int, int, str]]:
    """Return (bytes, time of change in ns, BLAKE2b in hex) of each file."""
    kept = work / FILES
    try:
        known = {} if verify else json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter
        found = dict(zip(paths, threads.map(lambda path: _facts(path, known), paths), strict=True))
    if found != {path: tuple(known.get(path, ())) for path in paths}:
        write_whole(kept, json.dumps(found) + "\n")
    return found


def _facts(path: str, known: dict[str, Any]) -> tuple[int, int, str]:
    try:
        status = os.stat(path)
        earlier = known.get(path, [])
        if earlier[:2] == [status.st_size, status.st_mtime_ns]:
            return status.st_size, status.st_mtime_ns, str(earlier[2])
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return status.st_size, status.st_mtime_ns, digest.hexdigest()
    except OSError as error:
        raise unreadable(Path(path), error) from error
