"""Steps of `prepare`: lists of tasks, each done once, whoever asks and however often.

A task writes into a folder of its own that appears complete, by a rename. The name of a step holds
the digest of all that shapes its output: what is there is right, and a changed parameter begins a
new step. Several processes, and several machines on a shared disk, may do the tasks of one step.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..base.errors import Code, JobError, Problem
from ..base.files import whole_folder

FACTS = "facts.json"  # of a task: what it counted
SMALL = 32 << 20  # bytes of a step that other processes would begin more slowly than this one ends
Log = Callable[[str], None]


def key_of(*parts: Any) -> str:
    """Digest JSON values to 16 hex digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=1 << 16)
def _facts_in(folder: Path) -> Mapping[str, Any]:
    return json.loads((folder / FACTS).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class CorpusStep:
    """Tasks of one kind.

    `run(number, folder)` does a task into a new folder and returns what it counted. It crosses to
    another process, so it is a function of a module with its arguments.
    """

    name: str
    key: str
    sizes: tuple[int, ...]  # of the tasks, in bytes
    run: Callable[[int, Path], dict[str, Any]]
    work: Path

    def folder(self, task: int) -> Path:
        """Return the folder of a task, which is there once the task is done."""
        return self.work / f"{self.name}-{self.key}" / f"{task:05d}"

    def facts(self, task: int) -> Mapping[str, Any]:
        """Return what a task counted; read once, since the folder of a task never changes."""
        return _facts_in(self.folder(task))

    def missing(self) -> list[int]:
        """List the tasks that nobody has done yet."""
        return [task for task in range(len(self.sizes)) if not self.folder(task).is_dir()]


@dataclass(frozen=True)
class Share:
    """The tasks of this program among those of several: every `of`-th one from `number`."""

    number: int = 0
    of: int = 1

    def takes(self, task: int) -> bool:
        return task % self.of == self.number


class Workers:
    """Processes that do tasks; they start when the first large step needs them."""

    def __init__(self, processes: int):
        self._most = processes
        self._pool: ProcessPoolExecutor | None = None

    def of(self, step: CorpusStep, todo: Sequence[int]) -> ProcessPoolExecutor | None:
        """Return the processes for these tasks; None where this one is done sooner alone."""
        size = sum(step.sizes[task] for task in todo)
        if min(self._most, len(todo)) <= 1 or size < SMALL:
            return None
        if self._pool is None:
            # spawned: a fork copies the threads' locks of pyarrow and tokenizers
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._most, context, initializer=_begin, initargs=(os.getpid(),)
            )
        return self._pool

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def run_step(step: CorpusStep, share: Share, workers: Workers, log: Log) -> list[int]:
    """Do the missing tasks of this share. Returns the tasks that are missing afterwards.

    Raises the JobError of the first task that fails; tasks that are done stay done.
    """
    missing = step.missing()
    todo = [task for task in missing if share.takes(task)]
    progress = _Progress(step, todo, log)
    if todo and (earlier := len(step.sizes) - len(missing)):
        log(f"{step.name}: {earlier} of {len(step.sizes)} tasks are done already")
    pool = workers.of(step, todo)
    if pool is None:
        for task in todo:
            _do(step, task)
            progress.done(task)
        return step.missing()
    futures = {pool.submit(_do, step, task): task for task in todo}
    try:
        for future in as_completed(futures):
            _wait(step, future)
            progress.done(futures[future])
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return step.missing()


def _do(step: CorpusStep, task: int) -> None:
    """Do a task into its folder."""
    final, began, cpu = step.folder(task), time.perf_counter(), time.process_time()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(final) as folder:
            facts = step.run(task, folder)
            facts["seconds"] = round(time.perf_counter() - began, 3)
            facts["cpu_seconds"] = round(time.process_time() - cpu, 3)
            (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    except OSError as error:
        if not final.is_dir():  # else another machine was faster, and its folder is the same
            raise disk_error(step.work, error) from error


def disk_error(folder: Path, error: OSError) -> JobError:
    """Describe a failure to write below `folder`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "Free space and run it again: what is done is kept." if full else "Run it again."
    where = error.filename or folder
    got = f"{where}: {error.strerror or error}"
    return JobError(Problem("out", "a folder that can be written", got, fix, Code.DISK))


def _wait(step: CorpusStep, future: Future[None]) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        got = f"a process of step {step.name} that was killed"
        fix = "Run it again: what is done is kept. With little memory, lower num_proc."
        raise JobError(
            Problem("num_proc", "processes that end by themselves", got, fix, Code.WORKER_DIED)
        ) from error


def _begin(parent: int) -> None:
    """End with the parent, however it ends; leave Ctrl-C to it; use one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)
    one_core()


def one_core() -> None:
    """Let the libraries of this process compute in one thread: the processes share the cores."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class _Progress:
    """Lines on the tasks of a step, at most one in some seconds."""

    EVERY_S = 5.0

    def __init__(self, step: CorpusStep, todo: Sequence[int], log: Log):
        self._step, self._log = step, log
        self._left = sum(step.sizes[task] for task in todo)
        self._total, self._tasks, self._done = self._left, len(todo), 0
        self._began = self._said = time.monotonic()

    def done(self, task: int) -> None:
        self._done += 1
        self._left -= self._step.sizes[task]
        now = time.monotonic()
        last = self._done == self._tasks
        if not last and now - self._said < self.EVERY_S:
            return
        self._said = now
        spent = now - self._began
        share = 1 - self._left / max(1, self._total)
        rest = f", {_duration(spent / share - spent)} left" if not last and share else ""
        spent_text = f" in {_duration(spent)}" if last else ""
        self._log(f"{self._step.name}: {self._done} of {self._tasks} tasks{spent_text}{rest}")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def held(work: Path, share: Share) -> Generator[None]:
    """Hold a folder for one program, or for the programs of different shares.

    Raises JobError (exit 2) while another program holds it.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        names = ["lock"] if share.of == 1 else ["lock", f"lock-{share.number + 1}-{share.of}"]
        descriptors = [os.open(work / name, os.O_RDWR | os.O_CREAT, 0o666) for name in names]
    except OSError as error:
        raise disk_error(work, error) from error
    try:
        for place, descriptor in enumerate(descriptors):
            shared = fcntl.LOCK_SH if place == 0 and share.of > 1 else fcntl.LOCK_EX
            try:
                fcntl.flock(descriptor, shared | fcntl.LOCK_NB)
            except BlockingIOError as error:
                got = f"{work.parent}, in which another prepare works"
                fix = "Wait for it, or share the work with --task k/N."
                raise JobError(
                    Problem("out", "a folder that no other prepare uses", got, fix)
                ) from error
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
