"""Reader of a run's log: its end at once, however long it is, then what is added to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..base.errors import shown
from ..base.files import open_plain
from ..base.redact import redact

CHUNK = 1 << 16  # bytes shown at first, and more at a time


@dataclass(frozen=True)
class LogPart:
    """Lines to be shown, and where they belong."""

    text: str
    place: Literal["new", "after", "before"]  # new: nothing else is left


class LogReader:
    """Reader of the end of a growing log, by seeking: its size does not matter."""

    def __init__(self, path: Path):
        self._path = path
        self._file = -1  # inode
        self.start = self._end = 0  # of what was read

    def read_on(self) -> LogPart | None:
        """Return the lines that are new; None without any. Raises OSError."""
        with open(self._path, "rb", opener=open_plain) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            place: Literal["new", "after"] = "after"
            if status.st_ino != self._file or size < self._end:
                place, self._file = "new", status.st_ino
                self.start = self._end = max(0, size - CHUNK)
            elif size - self._end > 4 * CHUNK:  # more than anybody reads
                place, self._end = "new", size - CHUNK
                self.start = self._end
            if size == self._end:
                return LogPart("", "new") if place == "new" else None
            file.seek(self._end)
            data = file.read(size - self._end)
        if place == "new" and self.start:
            cut = data.find(b"\n") + 1  # the line in whose middle it begins
            self.start += cut
            self._end += cut
            data = data[cut:]
        if len(data) < CHUNK:
            data = data[: data.rfind(b"\n") + 1]  # the rest of a line comes later
        self._end += len(data)
        return LogPart(_shown(data), place) if data or place == "new" else None

    def read_before(self) -> LogPart | None:
        """Return the lines before those that were read; None at the beginning. Raises OSError."""
        start = max(0, self.start - CHUNK)
        if start == self.start:
            return None
        with open(self._path, "rb", opener=open_plain) as file:
            file.seek(start)
            data = file.read(self.start - start)
        if start and (cut := data.find(b"\n") + 1) < len(data):
            start, data = start + cut, data[cut:]
        self.start = start
        return LogPart(_shown(data), "before")


def _shown(data: bytes) -> str:
    """Return text without keys: libraries write into a log, and it is cleaned when a run has ended."""
    return shown(redact(data.decode("utf-8", errors="replace")))
