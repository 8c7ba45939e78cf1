"""Files of saved denoisings below a root folder, and their names there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .records import is_trace

TRACES = "traces"  # folder of the root for traces of `chat --trace` and `sample --trace`
MOST_FILES = 1000  # listed
_NOT_OURS = ("events.jsonl", "metrics.jsonl")  # of a run: every trace has another name


def denoising_files(root: Path, runs: Iterable[str]) -> list[str]:
    """Return the names below a root of files that hold denoisings: of its runs and of TRACES."""
    found = [
        f"{folder}/{name}"
        for folder in (*runs, TRACES)
        for name in names_in(root / folder)
        if name.endswith(".jsonl") and name not in _NOT_OURS
        if is_trace(root / folder / name)
    ]
    return sorted(found)[:MOST_FILES]


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; none for a link, or for one that is gone."""
    try:
        return [] if folder.is_symlink() else os.listdir(folder)
    except OSError:
        return []


def below(root: Path, name: str) -> Path | None:
    """Return a path below a root by its name; None for one that leaves it, by dots or by a link."""
    path = root / name
    if not name or "\0" in name or ".." in Path(name).parts or Path(name).is_absolute():
        return None
    try:
        real = os.path.realpath(path)
    except UnicodeEncodeError:
        return None
    return path if real == os.path.join(os.path.realpath(root), name) else None
