"""Processes of jobs: each a `main.py train` of its own session, known to live by a lock it holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ..base.files import open_plain, take_lock
from ..base.process import ROOT, inherited
from ..run.folder import STOP, RunFolder
from ..run.lock import holder
from ..run.stages_file import STAGES_FILE
from .job import JobRecord
from .shelves import JobFile, Shelves


def start_train(shelves: Shelves, file: JobFile, run_dir: str) -> subprocess.Popen[bytes]:
    """Start the train of a running job in `run_dir`, or where its file says. Raises OSError.

    It inherits an open lock, which is free again when it has ended in any way; so that a later
    worker, too, knows whether the job lives without a guess from a process number.
    """
    words = [sys.executable, str(ROOT / "main.py"), "train", "--config", str(file.path), "--json"]
    words += ["--run_dir", run_dir] if run_dir else []
    lock = take_lock(shelves.beside(file.name, ".lock"))
    if lock is None:
        raise BlockingIOError(f"{file.name} runs already")
    try:
        with (
            open(shelves.beside(file.name, ".out"), "wb", opener=open_plain) as out,
            open(shelves.beside(file.name, ".log"), "wb", opener=open_plain) as log,
        ):
            return subprocess.Popen(
                words,
                env=_environment(os.environ),
                cwd=shelves.path.parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
    finally:
        os.close(lock)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the starter of the queue had in its environment: as if it had called train."""
    kept = inherited(environ)
    paths = [path for path in kept.pop("PYTHONPATH", "").split(os.pathsep) if path != str(ROOT)]
    return kept | ({"PYTHONPATH": os.pathsep.join(paths)} if any(paths) else {})


def lives(shelves: Shelves, name: str) -> bool:
    """Tell whether the train of a job lives. To be called under the queue's lock."""
    path = shelves.beside(name, ".lock")
    if not os.path.lexists(path):
        return False
    lock = take_lock(path)
    if lock is None:
        return True
    os.close(lock)
    return False


def leaves_ranks(record: JobRecord) -> bool:
    """Tell whether ranks of a job still hold its run folder: their parent was killed.

    They end by themselves within half a minute, and have the devices until then.
    """
    if not record.run_dir:
        return False
    run_dir = Path(record.run_dir)
    return any(holder(folder) for folder in (run_dir, *run_dir.glob("[0-9]*-*")))


def ask_to_stop(shelves: Shelves, name: str, record: JobRecord) -> None:
    """Ask a job to stop and save, if it lives. To be called under the queue's lock.

    The worker waits for its children under that lock only, so the number is still the job's. Train
    takes a second signal as the wish to end without saving: a second call sends none.
    """
    if record.stop_asked or not lives(shelves, name):
        return
    if record.pid:
        os.kill(record.pid, signal.SIGTERM)
    else:
        ask_by_file(record)


def ask_by_file(record: JobRecord) -> None:
    """Ask a job whose worker was killed as it started it: nobody knows its process number.

    It looks for the file once its run has begun, and a file in its way before would refuse it: the
    worker asks again at each turn, until the job ends.
    """
    folder = RunFolder(Path(record.run_dir))
    if record.run_dir and any((folder / name).is_file() for name in ("run.json", STAGES_FILE)):
        folder.ask(STOP)
