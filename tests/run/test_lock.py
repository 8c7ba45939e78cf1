"""Lock of the run folder, between processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.support import ROOT, child_env, wait_until

from plugin.base.errors import JobError, Problem
from plugin.run.folder import RunFolder

HOLD = """\
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from plugin.run.folder import RunFolder
import subprocess
with RunFolder(Path(sys.argv[1])).locked(0, print) as lock:
    {body}
    print("held", flush=True)
    time.sleep(60)
"""
WORKER = "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({s})'], pass_fds=[lock]).pid, flush=True)"


def holder(folder: Path, body: str = "pass") -> subprocess.Popen[str]:
    code = HOLD.format(root=str(ROOT), body=body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env=child_env(),
        stdout=subprocess.PIPE,
        text=True,
    )


def until_held(program: subprocess.Popen[str]) -> list[str]:
    assert program.stdout
    lines: list[str] = []
    while "held\n" not in lines:
        line = program.stdout.readline()
        assert line, "the holder ended"
        lines.append(line)
    return lines


def test_second_starter_waits_and_is_refused(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path) as first:
        try:
            until_held(first)
            began = time.monotonic()
            with pytest.raises(JobError) as caught, RunFolder(tmp_path).locked(1.0, said.append):
                pass
            assert 1.0 < time.monotonic() - began < 10
        finally:
            first.kill()
    assert said == [
        f"run_dir: {tmp_path} is in use by process {first.pid} or its workers; waiting up to 1 s"
    ]
    assert caught.value.code == 2
    assert caught.value.problems[0].field == "run_dir"
    assert f"process {first.pid}" in str(caught.value)


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path) as first:
        until_held(first)
        first.kill()
        first.wait()
        with RunFolder(tmp_path).locked(0, said.append):
            pass
    assert said == []
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_lock_outlives_a_killed_parent_in_its_worker(tmp_path: Path) -> None:
    with holder(tmp_path, WORKER.format(s=60)) as parent:
        worker = int(until_held(parent)[0])
        parent.kill()
        parent.wait()
        said: list[str] = []
        with (
            pytest.raises(JobError, match="still in use"),
            RunFolder(tmp_path).locked(0.3, said.append),
        ):
            pass
        os.kill(worker, signal.SIGKILL)
        with RunFolder(tmp_path).locked(10, said.append):
            pass
    assert len(said) <= 2


def test_refusal_removes_its_lock_and_the_waiter_makes_another(tmp_path: Path) -> None:
    folder, held = RunFolder(tmp_path), threading.Event()
    refusal = JobError(Problem("resume", "this", "that"))

    def wait() -> list[str]:
        with folder.locked(30, lambda line: held.set()):
            return [path.read_text() for path in tmp_path.iterdir()]

    def refuse_while_another_waits() -> Future[list[str]]:
        with contextlib.suppress(JobError), folder.locked(0, print):
            waiting = pool.submit(wait)
            assert held.wait(30), "the other starter waits for this one"
            raise refusal
        return waiting

    with ThreadPoolExecutor(1) as pool:
        waiting = refuse_while_another_waits()
        assert waiting.result(timeout=30) == [f"{os.getpid()}\n"], (
            "the file that others will look at"
        )
    with pytest.raises(JobError, match="resume"), folder.locked(0, print):
        raise refusal
    assert (tmp_path / ".lock").exists(), "it was there before"


def test_waiting_starter_continues_when_the_folder_is_free(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path, WORKER.format(s=1)) as parent:
        until_held(parent)
        parent.kill()
        began = time.monotonic()
        with RunFolder(tmp_path).locked(30, said.append):
            assert time.monotonic() - began < 15
    wait_until(lambda: len(said) == 1, "the waiting line", deadline_s=1)
