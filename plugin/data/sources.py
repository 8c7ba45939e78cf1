"""Rows of a mixture, read from files, folders and the hub.

Rows stream, so a file larger than memory is read in constant memory (except .json, which is read in
full). Nothing is skipped silently: `skipped_files` lists the files of a folder that are not data,
and a file that cannot be read to its end stops the job with the file and the line.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..base.errors import JobError, data_error, one_line
from ..base.redact import redact
from .files.columns import FIELD
from .files.folder import Split, folder_files, is_eval
from .files.readers import read_file, without_nan
from .hub import hub_rows, hub_split
from .mixture import Part, parse_mixture
from .stored.manifest import is_prepared, manifest_digest


@dataclass(frozen=True)
class Row:
    """A row with its id.

    `a.jsonl:7` is line 7, `a.json:3` the third object, `org/name:3` the third row.
    """

    id: str
    values: dict[str, Any]


def read_rows(spec: str, split: Split, *, text_rows: str = "paragraph") -> Iterator[Row]:
    """Read the rows of one split, part after part, each part up to its limit.

    `text_rows` chooses the row of a .txt: line, paragraph or file. Raises JobError: immediately for
    a bad spec, during the iteration for bad data (exit 3).
    """
    parts = parse_mixture(spec)
    if folder := prepared_folder(spec):
        raise data_error(FIELD, "rows", f"{folder}, a folder of prepare, which holds tokens")
    files = split_files(parts, split)
    names = Counter(path.name for paths in files for path in paths)
    pairs = zip(parts, files, strict=True)
    streams = (_part_rows(part, paths, split, names, text_rows) for part, paths in pairs)
    return chain.from_iterable(
        islice(stream, part.limit(split)) for part, stream in zip(parts, streams, strict=True)
    )


def _part_rows(
    part: Part,
    paths: Sequence[Path],
    split: Split,
    names: Counter[str],
    text_rows: str,
) -> Iterator[Row]:
    if part.path is None:
        for number, values in enumerate(hub_rows(part.name, part.config, split), start=1):
            yield Row(f"{part.name}:{number}", without_nan(values))
    for path in paths:
        label = row_label(path, names)
        try:
            if path.stat().st_size:
                for number, values in read_file(path, text_rows):
                    yield Row(f"{label}:{number}", values)
        except OSError as error:
            raise unreadable(path, error) from error


def row_label(path: Path, names: Counter[str]) -> str:
    """Return a file's name in the ids of its rows, in full where two files share one of `names`."""
    return redact(one_line(path.name if names[path.name] == 1 else str(path)))


def prepared_folder(spec: str) -> Path | None:
    """Return the folder of `prepare` that a mixture names, finished or not; None for rows."""
    path = Path(spec.strip()).expanduser()
    return path if is_prepared(path) else None


def has_eval_split(spec: str) -> bool:
    """Return whether any part has its own eval split.

    Asks the hub about hub ids. Raises JobError as `read_rows` does.
    """
    parts = parse_mixture(spec)
    return any(split_files(parts, "eval")) or any(
        hub_split(part.name, part.config, "eval") for part in parts if part.path is None
    )


def skipped_files(spec: str) -> tuple[str, ...]:
    """List the files in a mixture's folders that are not read.

    They are hidden files, metadata and files of unknown suffixes.
    """
    if prepared_folder(spec):
        return ()
    folders = [part.path for part in parse_mixture(spec) if part.path and part.path.is_dir()]
    return tuple(str(file) for folder in folders for file in folder_files(folder)["skipped"])


def local_paths(spec: str) -> list[Path]:
    """List the local files and folders that a mixture names, and the files read in its folders."""
    try:
        parts = parse_mixture(spec)
    except JobError:  # reported where the rows are read
        return []
    files = [
        path for split in ("train", "eval") for paths in split_files(parts, split) for path in paths
    ]
    return [*(part.path for part in parts if part.path), *files]


def fingerprint(spec: str) -> str:
    """Hash a mixture to 32 hex digits.

    The hash covers limits, splits, and the names and content of files. Of a hub id, it covers only
    the name; of a prepared folder, the manifest. Raises JobError.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = parse_mixture(spec)
    if folder := prepared_folder(spec):
        return manifest_digest(folder)
    for part, train, held_out in zip(
        parts, split_files(parts, "train"), split_files(parts, "eval"), strict=True
    ):
        name = None if part.path else part.name
        facts: list[object] = [name, part.config, part.train_limit, part.eval_limit]
        for split, path in [("train", path) for path in train] + [
            ("eval", path) for path in held_out
        ]:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
            except OSError as error:
                raise unreadable(path, error) from error
            facts.append([split, path.name, content])
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def split_files(parts: Sequence[Part], split: Split) -> list[list[Path]]:
    """List the local files of one split, part by part.

    File names decide the split, in a folder and in a mixture alike. If that left nothing to train
    on, the names are ignored and every file is train.
    """
    named = [part.path for part in parts if part.path and not part.path.is_dir()]
    by_name = any(not is_eval(path) for path in named) or any(
        part.path is None or part.path.is_dir() for part in parts
    )

    def of(part: Part) -> list[Path]:
        if part.path is None or is_prepared(part.path):
            return []
        if part.path.is_dir():
            return folder_files(part.path)[split]
        held_out = by_name and is_eval(part.path)
        return [part.path] if held_out == (split == "eval") else []

    return [of(part) for part in parts]


def unreadable(path: Path, error: OSError) -> JobError:
    """Return the error (exit 3) of a data file that cannot be read."""
    return data_error(FIELD, "a file that can be read", f"{path}: {error.strerror or error}")
