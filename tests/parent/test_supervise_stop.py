"""Stopping the workers: by the host, a signal or STOP, in time and with what was saved."""

from __future__ import annotations

import signal
import time

import pytest
from helpers.supervised import Witness, pid, run
from helpers.support import is_running

from plugin.parent import supervise
from plugin.run.folder import STOP, RunFolder
from plugin.run.outcome import Result

OBEDIENT = "wait_for('STOP'); finished('stopped')"


def test_a_hosts_stop_asks_through_the_stop_file_and_exits_0(
    folder: RunFolder, witness: Witness
) -> None:
    witness.stop = (folder / "pid0").exists
    outcome = run(folder, witness, OBEDIENT)
    assert folder.asked(STOP)
    assert (outcome.outcome, outcome.code) == ("stopped", 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_asks_the_same_and_exits_with_its_number(
    folder: RunFolder, witness: Witness, number: int, code: int
) -> None:
    witness.signals = lambda: [number] if (folder / "pid0").exists() else []
    outcome = run(folder, witness, OBEDIENT)
    assert (outcome.outcome, outcome.code) == ("stopped", code)
    assert outcome.result is not None
    assert outcome.result.steps == 3


def test_a_stop_that_comes_after_the_last_step_changes_nothing(
    folder: RunFolder, witness: Witness
) -> None:
    witness.signals = lambda: [signal.SIGTERM] if (folder / "pid0").exists() else []
    outcome = run(folder, witness, "wait_for('STOP'); finished('done')")
    assert (outcome.outcome, outcome.code) == ("done", 0)


IGNORES = "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)]\n"


def step(*steps: int) -> str:
    """Return a program that reports steps, the first of which is its start."""
    rest = "phase='train', steps=9, percent=0.0"
    return "".join(f"event(type='progress', step={number}, {rest})\n" for number in steps)


@pytest.mark.slow
@pytest.mark.parametrize("told", ["", step(7)], ids=["importing", "resumed at 7"])
@pytest.mark.parametrize(("asks", "code"), [("signal", 130), ("host", 0), ("file", 0)])
def test_a_stop_before_the_first_step_has_a_deadline(
    folder: RunFolder,
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
    told: str,
    asks: str,
    code: int,
) -> None:
    """Audit 8: a rank that waited for a foreign launcher's ranks outlived Ctrl-C by ten minutes."""
    monkeypatch.setattr(supervise, "START_GRACE_S", 0.5)
    started = (folder / "pid0").exists
    if asks == "signal":
        witness.signals = lambda: [signal.SIGINT] if started() else []
    if asks == "host":
        witness.stop = started
    touch = "(folder / 'STOP').touch()\n" if asks == "file" else ""
    outcome = run(folder, witness, f"{IGNORES}{told}{touch}time.sleep(60)")
    assert (outcome.outcome, outcome.code, outcome.error) == ("stopped", code, None)
    assert outcome.result == Result(outcome="stopped", steps=0)
    assert not is_running(pid(folder, "pid0"))


def test_a_stop_after_a_step_waits_for_the_save(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "START_GRACE_S", 0.5)
    witness.signals = lambda: (
        [signal.SIGINT] if (folder / "STOP").exists() or len(witness.events) > 1 else []
    )
    outcome = run(
        folder, witness, f"{step(7, 8)}wait_for('STOP'); time.sleep(2); finished('stopped')"
    )
    assert (outcome.outcome, outcome.code) == ("stopped", 130)
    assert outcome.result == Result(outcome="stopped", steps=3)


def test_a_second_signal_ends_the_workers_immediately(folder: RunFolder, witness: Witness) -> None:
    witness.signals = lambda: [signal.SIGINT, signal.SIGTERM] if (folder / "pid0").exists() else []
    began = time.monotonic()
    outcome = run(folder, witness, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(20)")
    assert time.monotonic() - began < 10
    assert (outcome.outcome, outcome.code) == ("stopped", 130)
    assert not is_running(pid(folder, "pid0"))


def test_a_stop_before_the_first_step_is_no_failure(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE_S", 1.0)
    witness.stop = (folder / "pid1").exists
    program = """
    if rank == 0:
        wait_for("STOP"); event(type="finished", result={"outcome": "stopped", "steps": 0}); sys.exit(0)
    if rank == 1:
        wait_for("STOP"); time.sleep(0.3); failed(1, "worker"); sys.exit(1)
    time.sleep(30)
    """
    outcome = run(folder, witness, program, ranks=3)
    assert (outcome.outcome, outcome.code, outcome.error) == ("stopped", 0, None)


def test_a_host_that_waits_three_seconds_gets_its_answer(
    folder: RunFolder, witness: Witness
) -> None:
    """A save longer than the grace is given up; the last checkpoint is intact."""
    witness.stop_grace_s = 0.5
    asked: list[float] = []

    def signals() -> list[int]:
        if (folder / "pid0").exists():
            asked.append(time.monotonic())
        return [signal.SIGTERM] if asked else []

    witness.signals = signals
    outcome = run(folder, witness, "wait_for('STOP'); time.sleep(60); finished('stopped')")
    assert (outcome.outcome, outcome.code, outcome.error) == ("stopped", 143, None)
    assert 0.5 <= time.monotonic() - asked[0] < 3
    assert not is_running(pid(folder, "pid0"))
