"""Whether a folder of ours is still what was written: a digest of every file, kept beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

DIGESTS = "digests.json"  # file name -> BLAKE2b of its content, 32 hex digits


def write_digests(folder: Path) -> None:
    """Written last: a folder without it was never finished."""
    found = {str(file.relative_to(folder)): _digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / DIGESTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def why_broken(folder: Path) -> str:
    """What is wrong with the files, in words; empty when each is there with its own content."""
    try:
        expected: Any = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {DIGESTS}, so this program did not finish it"
    except (OSError, ValueError) as error:
        return f"{DIGESTS} cannot be read: {error}"
    if not isinstance(expected, dict) or not expected:
        return f"{DIGESTS} names no files"
    for name, digest in expected.items():
        try:
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
