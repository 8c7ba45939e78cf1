"""The run folder: the plain files through which parent, worker, host and person talk about one run.

The parent alone writes `run.json`; the worker (rank 0) writes everything else. A person may create
`STOP`, `SAVE` and `SAMPLE`. A person's request is any entry of that name: a file, a link or a
folder. Every whole-file write goes beside the target, is fsynced and renamed, so a reader never
sees half a file.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from ..base.errors import JobError, Problem, json_line, one_line
from ..base.files import open_plain, remove, write_whole
from ..base.redact import redact
from .owned import LOCK, REQUESTS, begun_anew, is_record, misplaced

STOP, SAVE, SAMPLE = REQUESTS
LOCK_WAIT_S = (
    60.0  # how long a second starter waits for the folder; workers of a killed parent may live 30 s
)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def local_path(name: str) -> str:
    """A path on this machine in full, `~` and all, so that it means the same from any folder; a hub
    id stays as it is.
    """
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and (path != name or os.path.exists(path)) else name


def to_json(value: object) -> str:
    """One line of JSON, without keys; a NaN or infinity becomes a string, because no JSON reader is
    obliged to take one.
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


def _unwritable(path: Path, error: OSError) -> JobError:
    got = f"{path}: {error.strerror}"
    return JobError(
        Problem("run_dir", "a folder that can be written", got, "Choose another run_dir.")
    )


def _holder_of(lock: int) -> str:
    return f"process {os.pread(lock, 20, 0).decode().strip() or 'unknown'} or its workers"


class RunFolder:
    """Paths and small reads and writes of one run folder; holds no state besides its path."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def problems(self, *, goes_on: bool = False) -> list[Problem]:
        """Why this folder cannot take a new run, or `goes_on`: the run in it; empty when it can."""
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
            return [Problem("run_dir", "a folder of each machine's own", got, "Take it away.")]
        if not self.path.is_dir():
            return []
        try:
            if found := misplaced(self.path):
                return found
        except OSError as error:
            return [*_unwritable(self.path, error).problems]
        return self._problems_of_contents(fix, goes_on=goes_on)

    def _problems_of_contents(self, fix: str, *, goes_on: bool) -> list[Problem]:
        if not self._contents():
            return []
        if self._failed_before_a_step():
            return self._in_the_way(beside=not goes_on)
        if not goes_on and (holder := self._holder()):
            got = f"{self.path}, in use by {holder}"
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
            return [Problem("resume", "a checkpoint to go on from", got, fix)]
        return self._in_the_way(beside=False)

    def _in_the_way(self, *, beside: bool) -> list[Problem]:
        """What nobody may remove of a run that is to be begun anew: in its folders and, if asked,
        beside its files.
        """
        _, others, inside = begun_anew(self.path)
        if not (found := [*(others if beside else ()), *inside]):
            return []
        got = f"{self.path}, with {', '.join(found[:3])}, which no run has written"
        return [
            Problem(
                "run_dir",
                "a folder with a run's own files alone",
                got,
                "Take it away, or choose another run_dir.",
            )
        ]

    def _contents(self) -> list[Path]:
        """What a run has written: not the lock, nor the folders of the other machines, which may be
        there first.
        """
        return [
            path
            for path in self.path.iterdir()
            if path.name != LOCK and not path.name.startswith("machine-")
        ]

    def _holder(self) -> str:
        """Name the other process that holds the lock now; empty when there is none."""
        try:
            descriptor = open_plain(self / LOCK, os.O_RDONLY)
        except OSError:
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder_of(descriptor)
            return "" if f"process {os.getpid()} " in holder else holder
        except OSError:  # a disk without locks: `locked` refuses it
            return ""
        finally:
            os.close(descriptor)
        return ""

    def remove_refused(self) -> None:
        """Take away what a run wrote that was refused before its first step; another starter's
        folder stays.
        """
        try:
            with self.locked(0, lambda line: None):
                if self._failed_before_a_step():
                    for path in begun_anew(self.path)[0]:
                        remove(path)
                    (self / LOCK).unlink()
        except (JobError, OSError):
            return

    def _failed_before_a_step(self) -> bool:
        """A run of ours that was refused or broke while loading: a corrected try may have its
        folder.
        """
        if not self._holds_run():
            return False
        try:
            result: dict[str, Any] = self.read_run()["result"] or {}
            return (
                result.get("outcome") == "failed"
                and not self.checkpoints()
                and not (self / "metrics.jsonl").stat().st_size
            )
        except OSError:
            return False

    def _holds_run(self) -> bool:
        try:
            return is_record(self.read_run())
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
            raise _unwritable(self.path, error) from error

    def clear(self, *, goes_on: bool = False) -> None:
        """Under the lock: look again, for another run may have come and gone while we waited, and
        take away a failed try.

        `goes_on`: also a run of ours that has not come to its first checkpoint. What no run writes
        stays. Raises JobError (exit 2) when it would be in the way.
        """
        if found := self.problems(goes_on=goes_on):
            raise JobError(*found)
        for path in begun_anew(self.path)[0]:
            remove(path)

    @contextmanager
    def locked(self, wait_s: float, say: Callable[[str], None]) -> Generator[int]:
        """Hold the folder for one parent and all that inherit the descriptor this yields; it is
        free when the last has gone.

        While another run holds it, says so once and waits. Raises JobError (exit 2) after `wait_s`
        seconds, or when the folder cannot be written. A JobError inside, a refusal, takes the file
        away again if it was not there before.
        """
        descriptor, new = self._take_lock(wait_s, say)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        except JobError:
            if new:
                (self / LOCK).unlink()
            raise
        finally:
            os.close(descriptor)

    def _take_lock(self, wait_s: float, say: Callable[[str], None]) -> tuple[int, bool]:
        """(the open lock, whether there was none)."""
        path = self / LOCK
        while True:
            new = not os.path.lexists(path)
            try:
                self.path.mkdir(
                    parents=True, exist_ok=True
                )  # whoever made it may have been refused and have taken it away
                descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise _unwritable(self.path, error) from error
            try:
                self._wait_for(descriptor, wait_s, say)
                if os.path.lexists(path) and os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor, new
            except BaseException:
                os.close(descriptor)
                raise
            os.close(
                descriptor
            )  # whoever held it was refused and took the file away: the next starter would lock another

    def _wait_for(self, descriptor: int, wait_s: float, say: Callable[[str], None]) -> None:
        deadline, said = time.monotonic() + wait_s, False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _holder_of(descriptor)
                if time.monotonic() > deadline:
                    got = f"{self.path}, still in use by {holder}"
                    raise JobError(
                        Problem(
                            "run_dir",
                            "a run folder no other run holds",
                            got,
                            "Wait, or end that run.",
                        )
                    ) from error
                if not said:
                    say(f"run_dir: {self.path} is in use by {holder}; waiting up to {wait_s:g} s")
                said = True
                time.sleep(0.2)
            except OSError as error:
                got = f"{self.path}, whose disk has none: {error.strerror}"
                raise JobError(
                    Problem("run_dir", "a disk with file locks", got, "Choose another run_dir.")
                ) from error
            else:
                return

    def write_run(
        self, params: dict[str, Any], environment: dict[str, Any], result: dict[str, Any] | None
    ) -> None:
        content = {"params": params, "environment": environment, "result": result}
        write_whole(
            self / "run.json",
            json.dumps(_presentable(content), indent=2, ensure_ascii=False, default=str) + "\n",
        )

    def read_run(self) -> dict[str, Any]:
        return json.loads((self / "run.json").read_text(encoding="utf-8"))

    def asked(self, name: str) -> bool:
        """Whether a person (or the parent) created STOP, SAVE or SAMPLE."""
        return os.path.lexists(self / name)

    def ask(self, name: str) -> None:
        with suppress(FileExistsError):
            os.close(open_plain(self / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def answered(self, name: str) -> bool:
        """Take a request away; False when it cannot be: a folder that holds something."""
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
        """Whole checkpoints, oldest first; partial ones carry another name until they are whole."""
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
        return f" The last checkpoint, {found[-1].name}, is whole." if found else ""


class JsonLines:
    """An append-only .jsonl file, one flushed line an object, so that a reader can follow it while
    it grows.
    """

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
    """The requests of a folder as one rank answers them: each counts once, also one that cannot be
    taken away.
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
                f"warning: {name}: it cannot be taken away (a folder that holds something?); it counts once"
            )
        return True


class Tail:
    """Follows a growing text file: each call returns the whole lines that appeared since the last
    one.

    `from_end`: what is there already belongs to an earlier run.
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
