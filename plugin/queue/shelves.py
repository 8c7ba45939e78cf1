"""Folders of a queue: `waiting`, `running` and `ended` hold job files, `records` what is known of them.

A job is in one state because its file is in one folder: a change of state is one rename, and a kill
at any moment leaves the file on one side of it. What belongs to a job beside its file has the job's
name in `records` and never moves. Everything is changed under one lock; reading needs none.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..base.files import Version, open_plain, read_end, take_lock, version, write_whole
from .job import JobRecord
from .names import clean, order_of, unused

Shelf = Literal["waiting", "running", "ended"]
SHELVES: tuple[Shelf, ...] = ("waiting", "running", "ended")
RECORDS = "records"
LOCK, WORKER_LOCK, WORKER_LOG = "lock", "worker.lock", "worker.log"
ENDINGS = (".yaml", ".yml")
OF_A_JOB = (".json", ".log", ".out", ".lock")
MOST_RECORD = 1 << 22  # bytes of a record or of what train prints


@dataclass(frozen=True)
class JobFile:
    """A job's file where it lay when it was listed."""

    path: Path
    shelf: Shelf

    @property
    def name(self) -> str:
        return self.path.name.rpartition(".")[0]


@dataclass(frozen=True)
class Shelves:
    """The folder of a queue."""

    path: Path

    def make(self) -> None:
        """Make the folders. Raises OSError."""
        for name in (*SHELVES, RECORDS):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def files(self, shelf: Shelf) -> list[JobFile]:
        """List the job files of one state in their order.

        Links, folders, pipes, hidden and half-written files are no jobs.
        """
        try:
            with os.scandir(self.path / shelf) as entries:
                names = [
                    entry.name
                    for entry in entries
                    if entry.name.endswith(ENDINGS)
                    and not entry.name.startswith(".")
                    and entry.is_file(follow_symlinks=False)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        files = [JobFile(self.path / shelf / name, shelf) for name in names]
        return sorted(files, key=lambda file: order_of(file.name))

    def names(self, *shelves: Shelf) -> set[str]:
        return {file.name for shelf in shelves for file in self.files(shelf)}

    def beside(self, name: str, ending: str) -> Path:
        """Return a file that belongs to a job: `.json`, `.log`, `.out` or `.lock`."""
        return self.path / RECORDS / f"{name}{ending}"

    def rename(self, file: JobFile, shelf: Shelf, name: str) -> JobFile:
        """Move a job to another state or name. Raises OSError."""
        moved = JobFile(self.path / shelf / f"{name}.yaml", shelf)
        os.rename(file.path, moved.path)
        return moved

    def free_name(self, file: JobFile) -> str:
        """Return the name of a job in another state: its own, if that is a plain one and free.

        A person may have copied in a file of any name, also one that another job has.
        """
        files = (one for shelf in SHELVES for one in self.files(shelf))
        return unused(clean(file.name), {one.name for one in files if one.path != file.path})

    def record(self, name: str) -> JobRecord | None:
        """Return what is known of a job; None if nothing is, or another program wrote it.

        A page asks for every job each two seconds: a record that has not changed is not read again.
        """
        try:
            return _record(self, name, version(self.beside(name, ".json")))
        except OSError:
            return None

    def write_record(self, name: str, record: JobRecord) -> None:
        text = json.dumps(record.model_dump(), indent=2, ensure_ascii=False)
        write_whole(self.beside(name, ".json"), text + "\n")

    def text_or_none(self, name: str, ending: str) -> str:
        """Return the end of a file that belongs to a job; empty where it cannot be read."""
        try:
            return self.text(name, ending)
        except OSError:
            return ""

    def text(self, name: str, ending: str) -> str:
        """Return the end of a file that belongs to a job. Raises OSError."""
        end, _ = read_end(self.beside(name, ending), MOST_RECORD)
        return end.decode("utf-8", errors="replace")

    def forget(self, file: JobFile) -> None:
        """Remove a job's file, then what belongs to it. Raises OSError."""
        file.path.unlink(missing_ok=True)
        for ending in OF_A_JOB:
            with suppress(FileNotFoundError):
                self.beside(file.name, ending).unlink()

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the lock under which jobs change their state. Raises OSError."""
        descriptor = open_plain(self.path / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def lock_of_worker(self) -> int | None:
        """Take the worker's lock, and return its descriptor; None while another worker has it.

        To be called under `locked`, which the worker holds when it lets go: a job that was added
        before is seen by that worker, and one that is added after finds the lock free.
        """
        return take_lock(self.path / WORKER_LOCK)


@lru_cache(maxsize=1 << 13)
def _record(shelves: Shelves, name: str, seen: Version) -> JobRecord | None:
    """Return a record in the state `seen`. Raises OSError."""
    try:
        return JobRecord.read(json.loads(shelves.text(name, ".json")))
    except (ValueError, RecursionError):
        return None
