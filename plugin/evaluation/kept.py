"""Answers that an interrupted evaluation keeps: a line for each finished request."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..base.errors import Code, JobError, Problem
from ..base.files import open_plain

Value = dict[str, Any]


class Kept:
    """Finished requests in a .jsonl file, found again by model, settings and request alone.

    A line that a kill cut off is dropped, and so is one that holds something else.
    """

    def __init__(self, path: Path):
        """Open or create the file. Raises JobError (exit 2) for one that cannot be written."""
        self._path = path
        self._found: dict[str, Value] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab+", opener=open_plain) as file:
                file.seek(0)
                end = 0
                for line in file:
                    if line.endswith(b"\n"):
                        self._take(line)
                        end += len(line)
                file.truncate(end)
        except OSError as error:
            raise _unwritable(path, error, Code.CONFIGURATION) from error

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            self._found[record["key"]] = record["value"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return

    def get(self, key: str) -> Value | None:
        """Return the answer of an earlier request; None for a new one."""
        return self._found.get(key)

    def put(self, key: str, value: Value) -> None:
        """Keep an answer: after this call a killed program does not lose it.

        Raises JobError (exit 7) on a full disk.
        """
        self._found[key] = value
        try:
            with open(self._path, "ab", opener=open_plain) as file:
                file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
        except OSError as error:
            raise _unwritable(self._path, error, Code.DISK) from error


def _unwritable(path: Path, error: OSError, code: Code) -> JobError:
    got = f"{path}: {error.strerror}"
    return JobError(Problem("out", "a folder that can be written", got, code=code))


def content_key(*parts: object) -> str:
    """Return 32 hex digits over JSON values: the model, the settings, the request."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
