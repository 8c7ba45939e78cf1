"""Lock of a run folder, which a parent and its workers hold together."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ..base.errors import JobError, Problem
from ..base.files import open_plain
from .owned import LOCK

# How long a second starter waits for the folder: workers of a killed parent may live 30 s.
LOCK_WAIT_S = 60.0


def unwritable(path: Path, error: OSError) -> JobError:
    got = f"{path}: {error.strerror}"
    return JobError(
        Problem("run_dir", "a folder that can be written", got, "Choose another run_dir.")
    )


def holder(folder: Path) -> str:
    """Name the other process that holds the lock now; empty when there is none."""
    try:
        descriptor = open_plain(folder / LOCK, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        found = _holder_of(descriptor)
        return "" if f"process {os.getpid()} " in found else found
    except OSError:  # a disk without locks: `locked` refuses it
        return ""
    finally:
        os.close(descriptor)
    return ""


def _holder_of(lock: int) -> str:
    return f"process {os.pread(lock, 20, 0).decode().strip() or 'unknown'} or its workers"


@contextmanager
def locked(folder: Path, wait_s: float, say: Callable[[str], None]) -> Generator[int]:
    """Hold the folder for one parent and every process that inherits the yielded descriptor.

    The folder is free when the last of them has ended. While another run holds it, this waits
    and logs that once. Raises JobError (exit 2) after `wait_s` seconds, or when the folder cannot
    be written. A JobError inside, a refusal, removes the file again if it was not there before.
    """
    descriptor, new = _take_lock(folder, wait_s, say)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    except JobError:
        if new:
            (folder / LOCK).unlink()
        raise
    finally:
        os.close(descriptor)


def _take_lock(folder: Path, wait_s: float, say: Callable[[str], None]) -> tuple[int, bool]:
    """Return (the open lock, True if its file is new)."""
    path = folder / LOCK
    while True:
        new = not os.path.lexists(path)
        try:
            # Its maker may have been refused and have removed it.
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            _wait_for(folder, descriptor, wait_s, say)
            if os.path.lexists(path) and os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor, new
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder was refused and removed the file: the next starter would lock another one.
        os.close(descriptor)


def _wait_for(folder: Path, descriptor: int, wait_s: float, say: Callable[[str], None]) -> None:
    deadline, said = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = _holder_of(descriptor)
            if time.monotonic() > deadline:
                got = f"{folder}, still in use by {other}"
                expected = "a run folder no other run holds"
                raise JobError(
                    Problem("run_dir", expected, got, "Wait, or end that run.")
                ) from error
            if not said:
                say(f"run_dir: {folder} is in use by {other}; waiting up to {wait_s:g} s")
            said = True
            time.sleep(0.2)
        except OSError as error:
            got = f"{folder}, whose disk has none: {error.strerror}"
            raise JobError(
                Problem("run_dir", "a disk with file locks", got, "Choose another run_dir.")
            ) from error
        else:
            return
