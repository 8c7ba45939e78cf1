"""Hangs: detected by the parent's clock, with stacks, wherever the ranks are blocked."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.support import is_running

from plugin.base.errors import Code
from plugin.base.process import child_path
from plugin.parent.launch import LaunchPlan
from plugin.parent.supervise import Inherited, Relay, run_workers
from plugin.parent.watchdog import Watchdog
from plugin.run.folder import RunFolder
from plugin.run.heartbeat import Heartbeat, heartbeat_path
from plugin.run.outcome import Outcome

PRELUDE = """\
from plugin.worker import stack_dump
import os, signal, socket, sys, time
from pathlib import Path
from plugin.run.folder import JsonLines
from plugin.run.heartbeat import Heartbeat, heartbeat_path
from plugin.run.outcome import Outcome
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
(folder / f"pid{rank}").write_text(str(os.getpid()))
heartbeat = Heartbeat(heartbeat_path(folder, rank))
heartbeat.beat("train")
def finished():
    JsonLines(folder / "events.jsonl").write({"type": "finished", "result": {"outcome": "done", "steps": 1}})
def asleep_in_a_step():
    time.sleep(30)
def blocked_in_a_c_call():
    ours, theirs = socket.socketpair()
    ours.recv(1)
"""


def run(
    folder: RunFolder, program: str, timeout_s: float, ranks: int = 2
) -> tuple[Outcome, list[str]]:
    """Run workers of `program` under a watchdog; return the outcome and the lines of the log."""
    lines: list[str] = []
    script = folder.path.parent / "program.py"
    script.write_text(PRELUDE + program, encoding="utf-8")
    environments = tuple({**child_path({}), "RANK": str(rank)} for rank in range(ranks))
    plan = LaunchPlan((sys.executable, "-P", str(script), str(folder.path)), environments, (), "")
    relay = Relay(lines.append, lambda event: None, list, bool)
    with folder.locked(0, lines.append) as lock:
        return run_workers(plan, folder, relay, Inherited(lock, None), timeout_s), lines


def test_a_hang_ends_every_rank_with_exit_9_and_stacks(folder: RunFolder) -> None:
    began = time.monotonic()
    outcome, lines = run(folder, "asleep_in_a_step() if rank else blocked_in_a_c_call()", 1.0)
    assert time.monotonic() - began < 15
    assert (outcome.outcome, outcome.code) == ("failed", Code.HANG)
    assert outcome.error is not None
    assert outcome.error.line.startswith(
        "error[9]: worker: expected progress within 1 s, got none from rank "
    )
    assert "rank 0 in phase train" in outcome.error.line
    assert "rank 1 in phase train" in outcome.error.line
    assert "stacks are in log.txt" in outcome.error.line
    log = (folder / "log.txt").read_text()
    first, second = log.index("--- stacks of rank 0"), log.index("--- stacks of rank 1")
    assert first < log.index("blocked_in_a_c_call") < second < log.index("asleep_in_a_step")
    assert any("asleep_in_a_step" in line for line in lines), "the host sees the stacks too"
    assert not any(is_running(int((folder / f"pid{rank}").read_text())) for rank in (0, 1))
    assert not list(folder.path.glob(".heartbeat-*"))


@pytest.mark.slow
def test_a_rank_that_waits_for_a_busy_one_is_no_hang(folder: RunFolder) -> None:
    """Rank 0 reads its rows one by one for longer than the timeout; then both end well."""
    program = """
if rank == 0:
    for _ in range(40):
        time.sleep(0.1); heartbeat.beat("rows")
    (folder / "read").touch()
while not (folder / "read").exists():
    time.sleep(0.01)
if rank == 0:
    finished()
"""
    outcome, _ = run(folder, program, 2.0)
    assert (outcome.outcome, outcome.code, outcome.error) == ("done", 0, None)


@pytest.mark.slow
def test_a_rank_that_cannot_answer_is_said_to_be_stopped(folder: RunFolder) -> None:
    outcome, _ = run(folder, "os.kill(os.getpid(), signal.SIGSTOP)", 0.5, ranks=1)
    assert outcome.code == Code.HANG
    assert "rank 0 did not answer" in (folder / "log.txt").read_text()
    assert not is_running(int((folder / "pid0").read_text()))


def test_a_crash_in_native_code_leaves_its_stack_in_the_log(folder: RunFolder) -> None:
    program = "def crashing():\n    os.kill(os.getpid(), signal.SIGSEGV); time.sleep(9)\ncrashing()"
    outcome, _ = run(folder, program, 30.0, ranks=1)
    assert outcome.code == Code.WORKER_DIED
    assert outcome.error is not None
    assert "rank 0 ended by SIGSEGV" in outcome.error.line
    log = (folder / "log.txt").read_text()
    assert "Segmentation fault" in log
    assert "in crashing" in log


# --- the count itself, on a clock of the test's own


def test_silence_counts_from_the_last_progress_of_any_rank(tmp_path: Path) -> None:
    clock = [100.0]
    watchdog = Watchdog(tmp_path, [0, 1], 10.0, now=lambda: clock[0])
    first = Heartbeat(heartbeat_path(tmp_path, 0))
    first.beat("load")
    assert watchdog.hang() is None
    clock[0] = 109.0
    assert watchdog.hang() is None
    second = Heartbeat(heartbeat_path(tmp_path, 1))
    second.beat("train")
    second.beat()
    assert watchdog.hang() is None
    clock[0] = 118.9
    assert watchdog.hang() is None, "rank 1 was heard 9.9 s ago"
    clock[0] = 119.1
    hang = watchdog.hang()
    assert hang is not None
    assert hang.got.startswith("none from rank 0 in phase load, rank 1 in phase train")


def test_what_an_earlier_run_left_is_no_progress(tmp_path: Path) -> None:
    Heartbeat(heartbeat_path(tmp_path, 0)).beat("train")
    clock = [0.0]
    watchdog = Watchdog(tmp_path, [0], 10.0, now=lambda: clock[0])
    clock[0] = 11.0
    hang = watchdog.hang()
    assert hang is not None
    assert "phase start" in hang.got


def test_a_beat_is_cheap_enough_for_every_row_and_micro_batch(tmp_path: Path) -> None:
    heartbeat = Heartbeat(heartbeat_path(tmp_path, 0))
    began = time.process_time()
    for _ in range(10_000):
        heartbeat.beat("rows")
    assert (time.process_time() - began) / 10_000 < 100e-6
    assert heartbeat_path(tmp_path, 0).read_text().split() == ["10000", "rows"]


def test_every_phase_and_finished_step_of_a_run_beats(tmp_path: Path) -> None:
    """Ranks that do not report beat as well."""
    from plugin.worker.reporter import Reporter

    beats: list[Any] = []

    class Counted(Heartbeat):
        def beat(self, phase: str | None = None) -> None:
            beats.append(phase)

    reporter = Reporter(RunFolder(tmp_path), Counted(tmp_path / "file"), speaks=False)
    reporter.phase("load")
    reporter.tick(1, 2.0, 0.1)
    assert beats == ["load", None]
