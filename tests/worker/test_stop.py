"""Stops of a worker, in real processes: neither signals nor parents are mocked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.support import ROOT, child_env, is_running, wait_until

# Starts a worker (in its own session, as the launcher does), then sleeps; the worker starts a child
# and waits for a stop.
PARENT = """\
import os, subprocess, sys, time
env = {{**os.environ, "TRAINER_PARENT_PID": str(os.getpid()), "PYTHONPATH": {root!r}}}
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], env=env, start_new_session=True)
time.sleep(60)
"""
WORKER = """\
import os, subprocess, sys, time
from pathlib import Path
{before}
from plugin.worker import stop
from plugin.run.folder import RunFolder
folder = Path(sys.argv[1])
stop.ORPHAN_LIMIT_S = {limit}
requests = stop.RequestListener(RunFolder(folder), reads_files=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / "pids.part").write_text(f"{{os.getpid()}} {{child.pid}}")
(folder / "pids.part").rename(folder / "pids")
while not requests.stop():
    time.sleep(0.01)
(folder / "stopped").touch()
time.sleep(60)
"""


def start(folder: Path, *, limit: float, before: str = "") -> subprocess.Popen[bytes]:
    worker = WORKER.format(limit=limit, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", PARENT.format(root=str(ROOT)), worker, str(folder)], env=child_env()
    )


def end_session(pid: int) -> None:
    if is_running(pid):
        os.killpg(pid, signal.SIGKILL)


def test_worker_notices_parent_death_and_ends_its_children(tmp_path: Path) -> None:
    """The worker notices within two seconds, then ends with all processes that it started."""
    with start(tmp_path, limit=0.5) as parent:
        try:
            wait_until((tmp_path / "pids").exists, "the worker")
            worker, child = map(int, (tmp_path / "pids").read_text().split())
            time.sleep(0.6)
            assert not (tmp_path / "stopped").exists(), "its parent lives"
        finally:
            parent.kill()
    try:
        wait_until((tmp_path / "stopped").exists, "the worker to notice", deadline_s=2)
        wait_until(lambda: not is_running(worker), "the worker to give up", deadline_s=5)
        wait_until(lambda: not is_running(child), "what it started to end with it", deadline_s=2)
    finally:
        end_session(worker)


def test_parent_death_during_worker_imports_is_noticed(tmp_path: Path) -> None:
    late = "(Path(sys.argv[1]) / 'importing').touch()\nwhile os.getppid() == int(os.environ['TRAINER_PARENT_PID']): time.sleep(0.01)"
    with start(tmp_path, limit=60, before=late) as parent:
        wait_until((tmp_path / "importing").exists, "the worker to begin")
        parent.kill()
    wait_until((tmp_path / "pids").exists, "the worker")
    worker, _ = map(int, (tmp_path / "pids").read_text().split())
    try:
        wait_until((tmp_path / "stopped").exists, "the worker to notice", deadline_s=2)
    finally:
        end_session(worker)


def test_any_number_of_signals_is_one_request_to_a_worker(tmp_path: Path) -> None:
    with start(tmp_path, limit=60) as parent:
        try:
            wait_until((tmp_path / "pids").exists, "the worker")
            worker, _ = map(int, (tmp_path / "pids").read_text().split())
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                os.kill(worker, number)
            wait_until((tmp_path / "stopped").exists, "the worker to notice", deadline_s=2)
            assert is_running(worker), "only the parent escalates"
        finally:
            parent.kill()
            end_session(worker)
