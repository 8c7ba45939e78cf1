"""Files of saved denoisings below a root folder, and their names there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .records import is_trace

TRACES = "traces"  # folder of the root for traces of `chat --trace` and `sample --trace`
DEPTH = 3  # folders below the root in which files are looked for
MOST_FOLDERS, MOST_FILES = 5000, 1000  # looked at: a root may be any folder
_NOT_OURS = ("events.jsonl", "metrics.jsonl")  # of a run: every trace has another name


def folders_below(root: Path) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield (name, entries) of the folders below a root, the root's name empty; links excepted."""
    pending, left = [("", str(root), 0)], MOST_FOLDERS
    while pending and left:
        folder, path, depth = pending.pop()
        left -= 1
        try:
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        yield folder, inside
        pending += [
            (f"{folder}/{entry.name}" if folder else entry.name, entry.path, depth + 1)
            for entry in inside
            if depth < DEPTH
            and not entry.name.startswith(".")
            and entry.is_dir(follow_symlinks=False)
        ]


def denoising_files(root: Path) -> list[str]:
    """Return the names below a root of files that hold denoisings: of runs and of TRACES."""
    found = [
        f"{folder}/{entry.name}"
        for folder, inside in folders_below(root)
        if folder == TRACES or any(entry.name == "run.json" for entry in inside)
        for entry in inside
        if entry.name.endswith(".jsonl") and entry.name not in _NOT_OURS
        if is_trace(Path(entry.path))
    ]
    return sorted(found)[:MOST_FILES]


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
