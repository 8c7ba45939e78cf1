"""Queue of jobs as pages, scripts and the command line use it.

Jobs are files in ROOT/queue (see shelves.py). A worker (worker.py) runs them in their order, detached
from whoever added them, and ends when none is left.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ..base.errors import Code, JobError, Problem
from ..base.files import open_plain, write_whole
from ..base.process import child_path, inherited
from ..config.fields import NAME_PATTERN
from ..config.wording import did_you_mean, quoted
from .content import as_yaml, check_values, default_name, full_values, read_job_file
from .devices import device_set, shown_devices, visible_here
from .ending import error_line
from .job import Job, JobRecord, utc
from .names import bare, next_number, numbered, renamings
from .shelves import SHELVES, WORKER_LOG, JobFile, Shelf, Shelves
from .trains import ask_to_stop


class Queue:
    """The queue of a root folder of runs; its path is its only state."""

    def __init__(self, root: Path):
        self.root = root.expanduser().absolute()
        self._shelves = Shelves(self.root / "queue")

    def jobs(self) -> list[Job]:
        """List the jobs: those that run, those that wait in their order, ended ones newest first.

        It takes no lock. A job that changes its state meanwhile is listed once.
        """
        waiting = self._shelves.files("waiting")
        found = [self._waiting(file, place) for place, file in enumerate(waiting, 1)]
        running = [self._recorded(file) for file in self._shelves.files("running")]
        ended = [self._recorded(file) for file in self._shelves.files("ended")]
        later = {job.name for job in ended}
        begun = {job.name: job for job in running if job.name not in later}
        waits = [job for job in found if job.name not in later | set(begun)]
        ended.sort(key=lambda job: job.ended, reverse=True)
        return [*sorted(begun.values(), key=lambda job: job.started), *waits, *ended]

    def add(
        self,
        values: Mapping[str, object],
        name: str = "",
        *,
        typed: Collection[str] = (),
        beside: Path | None = None,
    ) -> Job:
        """Add a job with the values of a --config file at the end, and see that a worker runs.

        `typed`: names among them that a person typed. `beside`: the folder of files that a stage
        names. Raises JobError with every problem.
        """
        folder = (beside or Path.cwd()).absolute()
        name = name or default_name(values)
        problems: list[Problem] = []
        try:
            check_values(values, typed=typed, beside=folder)
        except JobError as error:
            problems += error.problems
        if not re.fullmatch(NAME_PATTERN, name):
            expected = "a name of letters, digits, '.', '_' and '-' (1 to 64)"
            problems.insert(0, Problem("name", expected, quoted(name)))
        if problems:
            raise JobError(*problems)
        text = as_yaml(full_values(values, folder))
        with self._changing():
            number = next_number(self._shelves.names(*SHELVES))
            file = JobFile(
                self._shelves.path / "waiting" / f"{numbered(number, name)}.yaml", "waiting"
            )
            write_whole(file.path, text)
            job = self._waiting(file, len(self._shelves.files("waiting")))
        self.start_worker()
        return job

    def cancel(self, name: str) -> Job:
        """Cancel a waiting job, or ask a running one to stop and save. Raises JobError."""
        with self._changing():
            file = self._find(name, ("waiting", "running"))
            if file.shelf == "waiting":
                added = utc(datetime.fromtimestamp(file.path.lstat().st_mtime, UTC))
                record = JobRecord(added=added, ended=utc(), state="cancelled")
                own = self._shelves.free_name(file)
                self._shelves.write_record(own, record)
                return self._recorded(self._shelves.rename(file, "ended", own))
            record = self._shelves.record(file.name) or JobRecord()
            ask_to_stop(self._shelves, file.name, record)
            self._shelves.write_record(file.name, record.model_copy(update={"stop_asked": True}))
            job = self._recorded(file)
        self.start_worker()  # which notes the end, if the one that started it was killed
        return job

    def move(self, name: str, place: int) -> Job:
        """Move a waiting job to a place: 1 is next. Raises JobError."""
        with self._changing():
            file = self._find(name, ("waiting",))
            by_name = {one.name: one for one in self._shelves.files("waiting")}
            moved = file.name
            others = self._shelves.names("running", "ended")
            for old, new in renamings(list(by_name), file.name, place, others):
                by_name[new] = self._shelves.rename(by_name.pop(old), "waiting", new)
                moved = new if old == moved else moved
            listed = [one.name for one in self._shelves.files("waiting")]
            return self._waiting(by_name[moved], listed.index(moved) + 1)

    def clear(self) -> int:
        """Forget the jobs that have ended, and return how many; their runs stay. Raises JobError."""
        with self._changing():
            files = self._shelves.files("ended")
            for file in files:
                self._shelves.forget(file)
            return len(files)

    def log(self, name: str) -> Path:
        """Return the file with what a job's train printed on stderr. Raises JobError."""
        path = self._shelves.beside(self._find(name, ("running", "ended")).name, ".log")
        if not path.is_file() or path.is_symlink():
            raise JobError(Problem("job", "a job that was started", f"{name}, which was not"))
        return path

    def has_worker(self) -> bool:
        """Tell whether a worker runs. Raises JobError where the queue cannot be written."""
        if not self._shelves.path.is_dir():
            return False
        with self._changing():
            if (lock := self._shelves.lock_of_worker()) is None:
                return True
            os.close(lock)
            return False

    def start_worker(self) -> None:
        """Start the worker, if none runs. Raises JobError.

        It inherits the lock that this call has taken, so that there is never a second one.
        """
        with self._changing():
            lock = self._shelves.lock_of_worker()
        if lock is None:
            return
        words = [sys.executable, "-P", "-m", __package__ or "", str(self.root), str(lock)]
        try:
            with open(self._shelves.path / WORKER_LOG, "ab", opener=open_plain) as log:
                code = subprocess.run(
                    words,
                    env=inherited(os.environ) | child_path(os.environ),
                    cwd=self.root.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock],
                    check=False,
                ).returncode
        except OSError as error:
            raise _unwritable(self._shelves.path, error) from error
        finally:
            os.close(lock)
        if code:
            got = f"exit code {code}; see {self._shelves.path / WORKER_LOG}"
            raise JobError(Problem("queue", "a worker that starts", got, code=Code.INTERNAL))

    @contextmanager
    def _changing(self) -> Generator[None]:
        """Hold the queue's lock. Raises JobError where the queue cannot be written."""
        try:
            self._shelves.make()
            with self._shelves.locked():
                yield
        except OSError as error:
            raise _unwritable(self._shelves.path, error) from error

    def _find(self, name: str, shelves: Sequence[Shelf]) -> JobFile:
        """Return the job of a name, which may lack its number where that is unique."""
        files = [file for shelf in shelves for file in self._shelves.files(shelf)]
        words = {name, name.removesuffix(".yaml")}
        found = (
            [file for file in files if file.path.name == name]
            or [file for file in files if words & {file.name, _shown_name(file)}]
            or [file for file in files if bare(file.name) in words]
        )
        if len(found) == 1:
            return found[0]
        wanted = "one job" if found else f"a job that {_OF_SHELVES[tuple(shelves)]}"
        if found:
            fix = f"Name one of {', '.join(file.path.name for file in found)}."
            raise JobError(Problem("job", wanted, f"{name}, of {len(found)} jobs", fix))
        other = [file for shelf in SHELVES for file in self._shelves.files(shelf)]
        there = next((one for one in other if words & {one.name, bare(one.name)}), None)
        got = f"{name}, which is {there.shelf}" if there else name
        known = [one for file in files for one in (file.name, bare(file.name))]
        fix = "" if there else did_you_mean(name, known)
        raise JobError(Problem("job", wanted, got, fix))

    def _waiting(self, file: JobFile, place: int) -> Job:
        try:
            added = utc(datetime.fromtimestamp(file.path.lstat().st_mtime, UTC))
        except OSError:  # it has just been started or removed
            added = ""
        job = Job(name=file.name, state="waiting", file=str(file.path), place=place, added=added)
        try:
            found, visible = read_job_file(file.path), visible_here()
            devices = shown_devices(device_set(found.stages, visible), visible)
        except JobError as error:
            return job.model_copy(update={"error": error_line(*error.problems)})
        run_dir = str(found.run_dir or "")
        return job.model_copy(update={"devices": devices, "run_dir": run_dir})

    def _recorded(self, file: JobFile) -> Job:
        record = self._shelves.record(file.name)
        lost = record is None or (file.shelf == "ended" and record.state is None)
        record = record or JobRecord()
        return Job(
            name=file.name,
            state="running" if file.shelf == "running" else record.state or "failed",
            file=str(file.path),
            devices=record.devices,
            run_dir=record.run_dir,
            added=record.added,
            started=record.started,
            ended=record.ended if file.shelf == "ended" else "",
            code=record.code,
            error="its record is lost" if lost and file.shelf == "ended" else record.error,
        )


_OF_SHELVES: dict[tuple[Shelf, ...], str] = {
    ("waiting", "running"): "waits or runs",
    ("waiting",): "waits",
    ("running", "ended"): "runs or has ended",
}


def _shown_name(file: JobFile) -> str:
    """Return the name as pages and JSON have it, where no character is one that UTF-8 lacks."""
    return Job(name=file.name, state="waiting", file="").name


def _unwritable(path: Path, error: OSError) -> JobError:
    got = f"{error.filename or path}: {error.strerror}"
    return JobError(Problem("run_root", "a folder that can be written", got))
