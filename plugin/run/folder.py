"""Run folder: the plain files through which parent, worker, host and person share one run.

The parent writes `run.json`; rank 0 of the workers writes everything else, and the `result` of
`run.json` as well where another program's launcher started it. A person may create `STOP`, `SAVE`
and `SAMPLE`. A person's request is any entry of that name: a file, a link or a folder. A file that
is replaced is written under another name, fsynced and renamed, so that a reader never sees half of
it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, cast

from ..base.errors import JobError, Problem, json_line, one_line
from ..base.files import open_plain, remove, write_whole
from ..base.redact import redact
from .lock import holder, locked, unwritable
from .owned import LOCK, REQUESTS, entries_before_restart, is_record, misplaced
from .run_file import RunFile

STOP, SAVE, SAMPLE = REQUESTS
MOST_RUN_JSON = 1 << 22  # bytes


def local_path(name: str) -> str:
    """Return a path of this machine in full, so that it means the same from any folder.

    A hub id stays as it is.
    """
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and (path != name or os.path.exists(path)) else name


def to_json(value: object) -> str:
    """Return one line of JSON without secret keys.

    A NaN or infinity becomes a string, because JSON has no such number.
    """
    return json_line(_presentable(value))


def _presentable(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {
            _presentable(key): _presentable(item)
            for key, item in cast("dict[Any, Any]", value).items()
        }
    if isinstance(value, list | tuple):
        return [_presentable(item) for item in cast("list[Any]", value)]
    return value


class RunFolder:
    """Paths and small reads and writes of one run folder; its path is its only state."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def problems(self, *, goes_on: bool = False) -> list[Problem]:
        """Return why this folder cannot hold a new run or, with `goes_on`, resume the run in it."""
        fix = "Choose another run_dir; runs are never overwritten."
        if one_line(str(self.path)) != str(self.path):
            return [
                Problem(
                    "run_dir",
                    "a name without control characters",
                    str(self.path),
                    "Choose another run_dir.",
                )
            ]
        if self.path.exists() and not self.path.is_dir():
            return [Problem("run_dir", "a folder", f"{self.path}, which is a file", fix)]
        if self.path.is_symlink() and re.fullmatch(r"machine-\d+", self.path.name):
            got = f"{self.path}, which is a link to {self.path.readlink()}"
            return [Problem("run_dir", "a folder of each machine's own", got, "Remove it.")]
        if not self.path.is_dir():
            return []
        try:
            if found := misplaced(self.path):
                return found
        except OSError as error:
            return [*unwritable(self.path, error).problems]
        return self._problems_of_contents(fix, goes_on=goes_on)

    def _problems_of_contents(self, fix: str, *, goes_on: bool) -> list[Problem]:
        if not self._contents():
            return []
        if self._failed_before_a_step():
            return self._in_the_way(beside=not goes_on)
        if not goes_on and (other := holder(self.path)):
            got = f"{self.path}, in use by {other}"
            return [
                Problem("run_dir", "a run folder no other run holds", got, "Wait, or end that run.")
            ]
        if not goes_on and self._holds_run() and not self.problems(goes_on=True):
            fix = "Choose another run_dir, or resume that run with --resume true."
            return [
                Problem("run_dir", "a new or empty folder", f"{self.path}, which holds a run", fix)
            ]
        if not goes_on:
            return [
                Problem("run_dir", "a new or empty folder", f"{self.path}, which holds files", fix)
            ]
        if not self._holds_run():
            return [
                Problem(
                    "resume",
                    "the folder of a run, with its run.json",
                    f"{self.path}, which holds other files",
                    fix,
                )
            ]
        if self.checkpoints():
            return []
        if kept := [name for name in ("adapter", "fused") if (self / name).exists()]:
            got = f"{self.path}, which has none but holds {' and '.join(kept)}"
            return [Problem("resume", "a checkpoint to resume from", got, fix)]
        return self._in_the_way(beside=False)

    def _in_the_way(self, *, beside: bool) -> list[Problem]:
        """Return a problem for entries that keep a run from being restarted.

        They lie in its folders and, with `beside`, next to its files. Nobody may remove them.
        """
        _, others, inside = entries_before_restart(self.path)
        if not (found := [*(others if beside else ()), *inside]):
            return []
        got = f"{self.path}, with {', '.join(found[:3])}, which no run has written"
        return [
            Problem(
                "run_dir",
                "a folder with a run's own files only",
                got,
                "Remove it, or choose another run_dir.",
            )
        ]

    def _contents(self) -> list[Path]:
        """List what a run has written.

        The lock and the folders of other machines may be there before it.
        """
        return [
            path
            for path in self.path.iterdir()
            if path.name != LOCK and not path.name.startswith("machine-")
        ]

    def remove_refused(self) -> None:
        """Remove the files of a run that was refused before its first step.

        A folder that another starter holds stays.
        """
        try:
            with self.locked(0, lambda line: None):
                if self._failed_before_a_step():
                    for path in entries_before_restart(self.path)[0]:
                        remove(path)
                    (self / LOCK).unlink()
        except (JobError, OSError):
            return

    def _failed_before_a_step(self) -> bool:
        """Tell a run of ours that was refused or failed while it loaded.

        A corrected job may use its folder.
        """
        if not self._holds_run():
            return False
        try:
            result = self.read_run().result
            return (
                result is not None
                and result.outcome == "failed"
                and not self.checkpoints()
                and not (self / "metrics.jsonl").stat().st_size
            )
        except (OSError, ValueError):
            return False

    def _holds_run(self) -> bool:
        try:
            return is_record(self._run_json())
        except (OSError, ValueError, RecursionError):
            return False

    def create(self, *, goes_on: bool = False) -> None:
        """Make the folder.

        Raises JobError (exit 2) when something is in it that may not be, or it cannot be made.
        """
        if found := self.problems(goes_on=goes_on):
            raise JobError(*found)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def clear(self, *, goes_on: bool = False) -> None:
        """Remove what a failed run left, under the lock.

        The folder is checked again, because another run may have used it while we waited. With
        `goes_on`, a run of ours without a checkpoint is removed too. What no run writes stays.
        Raises JobError (exit 2) when that keeps a run from starting.
        """
        if found := self.problems(goes_on=goes_on):
            raise JobError(*found)
        for path in entries_before_restart(self.path)[0]:
            remove(path)

    def locked(self, wait_s: float, say: Callable[[str], None]) -> AbstractContextManager[int]:
        """Hold the folder for one parent and its workers: see lock.locked."""
        return locked(self.path, wait_s, say)

    def write_run(self, run: RunFile) -> None:
        content = json.dumps(_presentable(run.content()), indent=2, ensure_ascii=False, default=str)
        write_whole(self / "run.json", content + "\n")

    def read_run(self) -> RunFile:
        """Return the content of run.json. Raises OSError and ValueError."""
        return RunFile.read(self._run_json())

    def _run_json(self) -> object:
        with open(self / "run.json", encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > MOST_RUN_JSON:
                raise ValueError(f"more than {MOST_RUN_JSON >> 20} MiB")
            return json.load(file)

    def asked(self, name: str) -> bool:
        """Return whether a person or the parent created STOP, SAVE or SAMPLE."""
        return os.path.lexists(self / name)

    def ask(self, name: str) -> None:
        with suppress(FileExistsError):
            os.close(open_plain(self / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def answered(self, name: str) -> bool:
        """Remove a request; False when it cannot be removed: a folder that holds something."""
        path = self / name
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def checkpoints(self) -> list[Path]:
        """List the complete checkpoints, oldest first; a partial one has another name."""
        found = [
            path
            for path in self.path.glob("checkpoint-*")
            if path.name.removeprefix("checkpoint-").isdigit()
        ]
        return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def what_is_saved(self) -> str:
        """Return a sentence on the last checkpoint, with a space before it; empty if there is
        none.
        """
        found = self.checkpoints()
        return f" The last checkpoint, {found[-1].name}, is complete." if found else ""


class JsonLines:
    """Writer of a .jsonl file: each object is one flushed line, so that a reader can follow it."""

    def __init__(self, path: Path):
        self._file: IO[str] = os.fdopen(
            open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a", encoding="utf-8"
        )

    def write(self, value: dict[str, Any]) -> None:
        self._file.write(to_json(value) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TakenOnce:
    """Requests of a folder, as one rank answers them.

    Each counts once, even when its file cannot be removed.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._stuck: set[str] = set()

    def take(self, name: str) -> bool:
        if not self._folder.asked(name):
            self._stuck.discard(name)
            return False
        if name in self._stuck:
            return False
        if not self._folder.answered(name):
            self._stuck.add(name)
            self._say(
                f"warning: {name}: it cannot be removed (a folder that holds something?); it counts once"
            )
        return True


class Tail:
    """Reader of a growing text file: each call returns the complete lines since the last one.

    `from_end`: what the file holds already belongs to an earlier run.
    """

    def __init__(self, path: Path, *, from_end: bool = False):
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", errors="replace") for line in lines]
