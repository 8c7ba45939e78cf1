"""Worker of a queue: it starts jobs on free devices and notes how they end, until none is left.

It holds nothing that the folder does not hold: after a kill the next worker adopts what runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from ..base.errors import JobError, Problem, one_line
from ..base.files import write_whole
from .content import CheckedJob, read_job_file
from .devices import CPU, device_set, shown_devices, startable, visible_here
from .ending import ended, has_reported, never_began, refused
from .job import JobRecord, utc
from .names import bare, unused
from .shelves import JobFile, Shelves
from .trains import ask_by_file, leaves_ranks, lives, start_train

POLL_S = 1.0
FRESH_S = 2.0  # a wrong file that is younger may still be being copied

Children = dict[str, subprocess.Popen[bytes]]  # of this worker, by the names of their jobs


def work(root: Path, lock: int) -> int:
    """Run the jobs of a root's queue, and return 0 when none is left.

    `lock`: the open lock of the queue's one worker. It is let go under the queue's lock, so that
    a job that is added at this moment either is seen or starts another worker.
    """
    shelves, children, said = Shelves(root / "queue"), Children(), ""
    while shelves.path.is_dir():
        try:
            with shelves.locked():
                if not turn(shelves, children):
                    os.close(lock)
                    return 0
        except OSError as error:  # a full disk: jobs wait until there is room
            line = one_line(f"{utc()} queue: {error}")
            if line[20:] != said[20:]:
                with suppress(OSError):  # the log lies on that disk too
                    print(line, file=sys.stderr, flush=True)
            said = line
        time.sleep(POLL_S)
    return 0


def turn(shelves: Shelves, children: Children) -> bool:
    """Move on every job that can be, and tell whether one waits or runs.

    Raises OSError, when all other jobs have had their turn.
    """
    visible, busy = visible_here(), set[str]()
    errors: list[OSError] = []
    for file in shelves.files("running"):
        record = shelves.record(file.name)
        with _kept(errors):
            if _settle(shelves, file, record, children):
                continue
        busy |= set(record.gpus) if record else {CPU, *visible}
    ready: dict[str, tuple[JobFile, CheckedJob, list[str]]] = {}
    for file in shelves.files("waiting"):
        with _kept(errors):
            if found := _checked(shelves, file, visible):
                ready[file.path.name] = (file, *found)
    for name in startable(((name, gpus) for name, (_, _, gpus) in ready.items()), busy):
        file, job, gpus = ready[name]
        with _kept(errors):
            _start(shelves, file, job, (gpus, shown_devices(gpus, visible)), children)
    if errors:
        raise errors[0]
    return bool(shelves.files("running") or shelves.files("waiting"))


@contextmanager
def _kept(errors: list[OSError]) -> Generator[None]:
    """Keep an error of one job, which stops no other."""
    try:
        yield
    except OSError as error:
        errors.append(error)


def _settle(shelves: Shelves, file: JobFile, record: JobRecord | None, children: Children) -> bool:
    """Note the end of a running job, if it has ended, and tell whether it has."""
    name, child = file.name, children.get(file.name)
    if child.poll() is None if child else lives(shelves, name):
        if record and not record.pid:
            if record.stop_asked:
                ask_by_file(record)
            elif child:  # the disk was full when it was started
                shelves.write_record(name, record.model_copy(update={"pid": child.pid}))
        return False
    if record and leaves_ranks(record) and not has_reported(shelves, name):
        return False
    children.pop(name, None)
    if child is None and never_began(shelves, name, record):
        shelves.rename(file, "waiting", shelves.free_name(file))
        return True
    record = record or JobRecord(added=_changed(file))
    if record.state is None:  # otherwise a worker was killed between this and the renaming
        code = child.returncode if child else None
        shelves.write_record(name, ended(shelves, name, record, code))
    shelves.rename(file, "ended", name)
    return True


def _checked(
    shelves: Shelves, file: JobFile, visible: list[str]
) -> tuple[CheckedJob, list[str]] | None:
    """Return a waiting job and its devices; None for a wrong file, which has then failed."""
    try:
        job = read_job_file(file.path)
        return job, device_set(job.stages, visible)
    except JobError as error:
        if not 0 <= time.time() - _modified(file) < FRESH_S:
            _fail(shelves, file, error.problems)
    return None


def _fail(shelves: Shelves, file: JobFile, problems: tuple[Problem, ...]) -> None:
    name = shelves.free_name(file)
    log = "".join(f"{problem.line}\n" for problem in problems)
    write_whole(shelves.beside(name, ".log"), log)
    shelves.write_record(name, refused(JobRecord(added=_changed(file)), *problems))
    shelves.rename(file, "ended", name)


def _start(
    shelves: Shelves,
    file: JobFile,
    job: CheckedJob,
    devices: tuple[list[str], str],
    children: Children,
) -> None:
    """Move a job to `running` and start its train.

    The record comes first. A kill after the move leaves a job that has not begun, and that the
    next worker puts back.
    """
    name = shelves.free_name(file)
    new = "" if job.given_folder else _new_run_dir(shelves, name)
    record = JobRecord(
        added=_changed(file),
        started=utc(),
        gpus=devices[0],
        devices=devices[1],
        run_dir=new or str(job.run_dir or ""),
    )
    for ending in (".log", ".out"):  # of a forgotten job
        shelves.beside(name, ending).unlink(missing_ok=True)
    shelves.write_record(name, record)
    running = shelves.rename(file, "running", name)
    children[name] = start_train(shelves, running, new)
    shelves.write_record(name, record.model_copy(update={"pid": children[name].pid}))


def _new_run_dir(shelves: Shelves, name: str) -> str:
    """Return a folder beside the queue, named after the moment and the job, as train names one."""
    root = shelves.path.parent
    known = [shelves.record(one) for one in shelves.names("running")]
    taken = {Path(one.run_dir).name for one in known if one} | {
        path.name for path in root.iterdir()
    }
    return str(root / unused(f"{datetime.now():%Y-%m-%d-%H%M%S}-{bare(name)}", taken))


def _modified(file: JobFile) -> float:
    try:
        return file.path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _changed(file: JobFile) -> str:
    """Return when a waiting file was written, which is when its job was added."""
    return utc(datetime.fromtimestamp(_modified(file), UTC))
