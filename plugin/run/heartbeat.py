"""Heartbeat of a rank: a file that the parent's watchdog reads."""

from __future__ import annotations

import os
from pathlib import Path

from ..base.files import open_plain


def heartbeat_path(folder: Path, rank: int) -> Path:
    return folder / f".heartbeat-{rank}"


class Heartbeat:
    """Writer of a rank's heartbeat.

    The file holds `count phase` in a fixed length. It is written in place, which costs a
    microsecond.
    """

    def __init__(self, path: Path):
        self._file = open_plain(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._count, self._phase = 0, "start"

    def beat(self, phase: str | None = None) -> None:
        self._count += 1
        self._phase = phase or self._phase
        os.pwrite(self._file, f"{self._count:>15} {self._phase:<16}\n".encode(), 0)
