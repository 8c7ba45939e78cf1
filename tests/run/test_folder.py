"""The run folder's lock, and what it takes for a folder to be free; with processes of their own,
for locks are between them.
"""

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
from helpers.support import ROOT, child_env, wait_until, write_record

from plugin.base.errors import JobError, Problem
from plugin.run.folder import RunFolder, to_json

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


def test_a_second_starter_waits_says_so_once_and_is_refused_by_name(tmp_path: Path) -> None:
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


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path) as first:
        until_held(first)
        first.kill()
        first.wait()
        with RunFolder(tmp_path).locked(0, said.append):
            pass
    assert said == []
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_folder_stays_locked_while_a_killed_parents_worker_lives(tmp_path: Path) -> None:
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


def test_a_refusal_takes_its_own_lock_away_and_who_waited_for_it_locks_anew(tmp_path: Path) -> None:
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


def test_a_folder_that_became_a_runs_while_we_waited_is_not_overwritten(tmp_path: Path) -> None:
    """Two starters saw an empty folder; the second gets the lock when the first one's run is
    over.
    """
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_record(folder.path, "done")
    with pytest.raises(JobError, match="which holds a run"):
        folder.clear()
    assert (folder / "run.json").exists()


def test_a_failed_first_try_is_cleared_but_not_the_lock_nor_another_machines_folder(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with folder.locked(0, print):
        (folder / "data").mkdir()
        (folder / "metrics.jsonl").touch()
        (folder / "machine-1").mkdir()
        write_record(folder.path, "failed")
        folder.clear()
        assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "machine-1"]
    assert folder.problems() == []


def test_clearing_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", RunFolder(tmp_path / "run")
    outside.mkdir()
    (outside / "precious").touch()
    folder.create()
    (folder / "metrics.jsonl").touch()
    write_record(folder.path, "failed")
    (folder / "data").symlink_to(outside)
    with pytest.raises(JobError, match="with data, which is a link to"):
        folder.clear()
    folder.remove_refused()
    assert (outside / "precious").exists()
    assert (folder / "data").is_symlink(), "whoever put it there may take it away"


def test_a_folder_that_cannot_be_made_or_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(JobError, match="a folder that can be written") as caught:
            RunFolder(path).create()
        assert caught.value.code == 2
    with (
        pytest.raises(JobError, match="a folder that can be written"),
        RunFolder(Path("/proc")).locked(0, print),
    ):
        pass


def test_json_holds_no_number_that_json_has_not() -> None:
    assert (
        to_json({"a": float("nan"), "b": [float("-inf"), 1.5]})
        == '{"a": "nan", "b": ["-inf", 1.5]}'
    )


def test_a_waiting_starter_goes_on_as_soon_as_the_folder_is_free(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path, WORKER.format(s=1)) as parent:
        until_held(parent)
        parent.kill()
        began = time.monotonic()
        with RunFolder(tmp_path).locked(30, said.append):
            assert time.monotonic() - began < 15
    wait_until(lambda: len(said) == 1, "the waiting line", deadline_s=1)


def test_a_folder_in_use_says_by_whom(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_record(folder.path, None)
    with folder.locked(0, lambda line: None) as lock:
        (problem,) = folder.problems()
        assert problem.got.endswith("which holds a run"), "this process itself does not count"
        os.pwrite(lock, b"7654321\n", 0)  # as another one would hold it
        (problem,) = folder.problems()
        assert problem.got == f"{folder.path}, in use by process 7654321 or its workers"
    (problem,) = folder.problems()
    assert problem.got == f"{folder.path}, which holds a run"
    assert problem.fix.endswith("resume that run with --resume true.")


def test_a_refused_run_goes_and_what_is_anothers_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_record(folder.path, "failed")
    (folder / "metrics.jsonl").touch()
    with folder.locked(0, lambda line: None):
        folder.remove_refused()
        assert (folder / "run.json").exists(), "another starter holds the folder"
    (folder / "theirs").touch()
    folder.remove_refused()
    assert [path.name for path in folder.path.iterdir()] == ["theirs"]
