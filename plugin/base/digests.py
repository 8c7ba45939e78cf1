"""Integrity of a folder that this program wrote: a digest of each file, kept with the files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .files import open_plain, walk

DIGESTS = "digests.json"  # file name -> BLAKE2b of its content, 32 hex digits
_MOST_BYTES = 1 << 24  # of that file: a hundred thousand names


def write_digests(folder: Path, *, ignored: Collection[str] = ()) -> None:
    """Write the digest of every file. Call it last: a folder without digests was never finished.

    `ignored`: entries of the folder that are not looked at, here and later.
    """
    found = {
        name: file_digest(folder / name)
        for name, entry in _entries(folder, ignored)
        if entry.is_file(follow_symlinks=False)
    }
    with open(folder / DIGESTS, "w", encoding="utf-8", opener=open_plain) as file:
        file.write(json.dumps(found, indent=1) + "\n")


def _entries(folder: Path, ignored: Collection[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    return (
        (name, entry)
        for name, entry in walk(folder)
        if name.partition("/")[0] not in ignored and name != DIGESTS
    )


def why_broken(folder: Path, *, ignored: Collection[str] = ()) -> str:
    """Describe what is wrong with the files; empty if exactly those that were written are there."""
    try:
        expected = _listed(folder)
        there = dict(_entries(folder, ignored))
    except FileNotFoundError:
        return f"it has no {DIGESTS}, so this program did not finish it"
    except (OSError, ValueError, RecursionError) as error:
        return f"{DIGESTS} cannot be read: {error}"
    if not expected:
        return f"{DIGESTS} names no files"
    for name, entry in there.items():
        if reason := _why_foreign(name, entry, expected):
            return reason
    for name, digest in expected.items():
        if name not in there:  # as is a path elsewhere, which begins with / or holds ..
            return f"{name} is missing"
        try:
            if file_digest(folder / name) != digest:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def unlisted(folder: Path) -> bool:
    """Tell whether a folder holds files that this program did not write and may not remove."""
    try:
        expected = _listed(folder)
        return any(_why_foreign(name, entry, expected) for name, entry in walk(folder))
    except (OSError, ValueError, RecursionError):
        return True


def _listed(folder: Path) -> Mapping[str, Any]:
    with open(folder / DIGESTS, "rb", opener=open_plain) as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
    found: Any = json.loads(text.decode("utf-8"))
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def _why_foreign(name: str, entry: os.DirEntry[str], expected: Mapping[str, Any]) -> str:
    if entry.is_symlink():
        return f"{name} is a link"
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return ""
    if not stat.S_ISREG(status.st_mode):
        return f"{name} is not a plain file"
    if name != DIGESTS and name not in expected:
        return f"{name} is not one of the files of {DIGESTS}"
    if status.st_size > _disk_size(entry.path):  # a hole would be read endlessly
        return f"{name} is larger than its disk"
    return ""


def _disk_size(path: str) -> float:
    disk = os.statvfs(path)
    return disk.f_blocks * disk.f_frsize or float("inf")


def file_digest(file: Path) -> str:
    """Return the BLAKE2b of a plain file, 32 hex digits. Raises OSError, also for a link."""
    with open(file, "rb", opener=open_plain) as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
