"""What became of the workers, with small real programs in their place: they write events and end in
every way there is.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.support import is_running, processes_naming, wait_until

from plugin.base import redact
from plugin.base.errors import Code
from plugin.parent import supervise
from plugin.parent.launch import LaunchPlan
from plugin.parent.supervise import Inherited, Relay, run_workers
from plugin.run.events import Event, LogEvent
from plugin.run.folder import STOP, RunFolder
from plugin.run.outcome import Outcome, Result

PRELUDE = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))
def event(**content):
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "now", **content}) + "\\n")
def finished(outcome="done"):
    event(type="finished", result={"outcome": outcome, "steps": 3})
def failed(code, field="dataset_name"):
    event(type="failed", error={"field": field, "expected": "e", "got": "g", "fix": "", "code": code})
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
(folder / f"pid{rank}").write_text(str(os.getpid()))
"""


class Witness:
    """A host that remembers, and can ask for a stop."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Event] = []
        self.signals: Callable[[], list[int]] = list
        self.stop: Callable[[], bool] = bool
        self.stop_grace_s = math.inf

    def relay(self) -> Relay:
        return Relay(
            self.lines.append,
            self.events.append,
            lambda: self.signals(),
            lambda: self.stop(),
            self.stop_grace_s,
        )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def witness() -> Witness:
    return Witness()


def run(folder: RunFolder, witness: Witness, program: str, ranks: int = 1) -> Outcome:
    script = folder.path.parent / "program.py"
    script.write_text(PRELUDE + textwrap.dedent(program), encoding="utf-8")
    environments = tuple({"RANK": str(rank)} for rank in range(ranks))
    return start(folder, witness, (sys.executable, str(script), str(folder.path)), environments)


def start(
    folder: RunFolder,
    witness: Witness,
    argv: tuple[str, ...],
    ranks: tuple[dict[str, str], ...],
    hang_timeout_s: float = 60,
) -> Outcome:
    with folder.locked(0, witness.lines.append) as lock:
        return run_workers(
            LaunchPlan(argv, ranks, (), ""),
            folder,
            witness.relay(),
            Inherited(lock, None),
            hang_timeout_s,
        )


def pid(folder: RunFolder, name: str) -> int:
    return int((folder / name).read_text())


def test_done_takes_exit_0_and_a_finished_event(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "print('hello', flush=True); finished()")
    assert (outcome.outcome, outcome.code, outcome.error) == ("done", 0, None)
    assert outcome.result == Result(outcome="done", steps=3)
    assert witness.lines == ["hello"]
    assert [event.type for event in witness.events] == ["finished"]


def test_exit_0_without_a_final_event_is_no_success(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "event(type='log', line='well')")
    assert (outcome.outcome, outcome.code) == ("failed", Code.WORKER_DIED)
    assert outcome.error is not None
    assert outcome.error.line.startswith("error[8]: worker: expected a final event")


def test_a_finished_event_without_exit_0_is_no_success(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "finished(); sys.exit(3)")
    assert (outcome.outcome, outcome.code) == ("failed", Code.WORKER_DIED)
    assert outcome.error is not None
    assert "rank 0 exited 3" in outcome.error.got


def test_a_failed_event_gives_its_code_and_problem(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "failed(3); sys.exit(3)")
    assert (outcome.outcome, outcome.code) == ("failed", Code.DATA)
    assert outcome.error is not None
    assert outcome.error.line == "error[3]: dataset_name: expected e, got g."


def test_a_killed_worker_was_likely_out_of_memory(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "os.kill(os.getpid(), signal.SIGKILL)")
    assert (outcome.outcome, outcome.code) == ("failed", Code.WORKER_DIED)
    assert outcome.error is not None
    assert "worker died (likely out of memory): rank 0 ended by SIGKILL" in outcome.error.line


def test_another_signal_is_named_without_a_guess(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "os.kill(os.getpid(), signal.SIGABRT)")
    assert outcome.error is not None
    assert "worker died: rank 0 ended by SIGABRT" in outcome.error.line


def test_an_import_that_fails_is_the_cause_with_the_log_named(
    folder: RunFolder, witness: Witness
) -> None:
    """As transformers reports a torchvision that was built for another torch: the error that a user
    can search for comes first.
    """
    program = """
    try:
        raise RuntimeError("operator torchvision::nms does not exist")
    except RuntimeError as error:
        raise ModuleNotFoundError("Could not import module 'PreTrainedModel'.") from error
    """
    outcome = run(folder, witness, program)
    assert outcome.error is not None
    assert outcome.error.line == (
        "error[8]: worker: expected every rank to finish, got worker died: rank 0 exited 1: "
        "ModuleNotFoundError: Could not import module 'PreTrainedModel'. "
        f"(from RuntimeError: operator torchvision::nms does not exist). See {folder / 'log.txt'}."
    )


@pytest.mark.parametrize("saved", [[], ["checkpoint-5", "checkpoint-20"]])
def test_only_a_checkpoint_that_is_there_is_called_whole(
    folder: RunFolder, witness: Witness, saved: list[str]
) -> None:
    for name in saved:
        (folder / name).mkdir()
    outcome = run(folder, witness, "os.kill(os.getpid(), signal.SIGKILL)")
    assert outcome.error is not None
    assert outcome.error.fix.endswith(
        " The last checkpoint, checkpoint-20, is complete." if saved else "log.txt."
    )
    assert ("is complete" in outcome.error.line) is bool(saved)


def test_one_failing_rank_ends_the_other_within_the_grace(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE_S", 0.3)
    began = time.monotonic()
    outcome = run(
        folder,
        witness,
        "time.sleep(20) if rank == 0 else wait_for('pid0'); failed(4); sys.exit(4)",
        ranks=2,
    )
    assert time.monotonic() - began < 10, "the sleeping rank was waited for"
    assert (outcome.outcome, outcome.code) == ("failed", Code.MODEL)
    assert not is_running(pid(folder, "pid0"))


def test_the_rank_that_died_is_named_not_the_one_ended_for_it(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE_S", 0.3)
    outcome = run(
        folder, witness, "time.sleep(20) if rank == 0 else wait_for('pid0'); sys.exit(11)", ranks=2
    )
    assert outcome.code == Code.WORKER_DIED
    assert outcome.error is not None
    assert "rank 1 exited 11" in outcome.error.got


def test_the_first_failure_is_the_cause_and_later_ones_follow_from_it(
    folder: RunFolder, witness: Witness
) -> None:
    program = """
    if rank == 1:
        failed(3); (folder / "said").touch(); sys.exit(3)
    wait_for("said"); failed(1, "worker"); sys.exit(1)
    """
    outcome = run(folder, witness, program, ranks=2)
    assert outcome.code == Code.DATA
    assert outcome.error is not None
    assert outcome.error.field == "dataset_name"


def test_a_rank_that_does_not_end_after_the_others_did_is_a_failure(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "EXIT_GRACE_S", 0.3)
    program = "if rank:\n    time.sleep(20)\nwait_for('pid1'); finished()"
    outcome = run(folder, witness, program, ranks=2)
    assert (outcome.outcome, outcome.code) == ("failed", Code.WORKER_DIED)
    assert outcome.error is not None
    assert "rank 1" in outcome.error.got
    assert not is_running(pid(folder, "pid1"))


@pytest.mark.parametrize("ending", ["finished()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_worker_started_dies_with_it(
    folder: RunFolder, witness: Witness, ending: str
) -> None:
    start = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])"
    run(folder, witness, f"{start}\n(folder / 'grandchild').write_text(str(child.pid))\n{ending}")
    grandchild = pid(folder, "grandchild")
    wait_until(lambda: not is_running(grandchild), "the grandchild to end", deadline_s=10)


def test_no_rank_is_left_when_another_cannot_be_started(
    folder: RunFolder, witness: Witness
) -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(20)", str(folder.path))
    unstartable = {"NAME": "a zero byte: \0"}
    with pytest.raises(ValueError, match="null byte"):
        start(folder, witness, argv, ({}, unstartable))
    assert processes_naming(str(folder.path)) == []


def test_no_worker_is_left_when_the_host_raises(folder: RunFolder, witness: Witness) -> None:
    """A host's stop button may arrive as KeyboardInterrupt from any of its calls."""

    def interrupted() -> bool:
        if (folder / "pid0").exists():
            raise KeyboardInterrupt
        return False

    witness.stop = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(folder, witness, "time.sleep(20)")
    assert not is_running(pid(folder, "pid0"))


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
    """Return a program's text that tells of steps done, the first of them where it began."""
    rest = "phase='train', steps=9, percent=0.0"
    return "".join(f"event(type='progress', step={number}, {rest})\n" for number in steps)


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
    """Audit 8: a rank that waited for a foreign launcher's others outlived Ctrl-C by ten minutes
    and more.
    """
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


def test_a_second_signal_ends_the_workers_now(folder: RunFolder, witness: Witness) -> None:
    witness.signals = lambda: [signal.SIGINT, signal.SIGTERM] if (folder / "pid0").exists() else []
    began = time.monotonic()
    outcome = run(folder, witness, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(20)")
    assert time.monotonic() - began < 10
    assert (outcome.outcome, outcome.code) == ("stopped", 130)
    assert not is_running(pid(folder, "pid0"))


def test_every_line_and_event_is_relayed_once_and_in_order(
    folder: RunFolder, witness: Witness
) -> None:
    run(
        folder,
        witness,
        "for n in range(500): print('line', n, flush=True); event(type='log', line=str(n))\nfinished()",
    )
    assert witness.lines == [f"line {n}" for n in range(500)]
    lines = [event.line for event in witness.events if isinstance(event, LogEvent)]
    assert lines == [str(n) for n in range(500)]
    assert [event.type for event in witness.events] == [*["log"] * 500, "finished"]


def test_half_an_event_of_a_killed_worker_does_not_break_the_parent(
    folder: RunFolder, witness: Witness
) -> None:
    """Rank 0 dies inside a line; rank 1 appends to it."""
    program = """
    if rank == 0:
        with (folder / "events.jsonl").open("a") as file:
            file.write('{"type": "progr')
        (folder / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for("half"); failed(1, "worker"); event(type="log", line="after"); sys.exit(1)
    """
    outcome = run(folder, witness, program, ranks=2)
    assert outcome.outcome == "failed"
    assert outcome.code in (Code.INTERNAL, Code.WORKER_DIED)
    assert isinstance(witness.events[-1], LogEvent)
    assert witness.events[-1].line == "after"


def test_what_a_run_of_another_host_left_in_the_log_is_kept(
    folder: RunFolder, witness: Witness
) -> None:
    (folder / "log.txt").write_text("earlier\n", encoding="utf-8")
    run(folder, witness, "print('now', flush=True); finished()")
    assert (folder / "log.txt").read_text() == "earlier\nnow\n"
    assert json.loads((folder / "events.jsonl").read_text())["type"] == "finished"


def test_a_killed_rank_is_the_cause_of_what_the_others_say(
    folder: RunFolder, witness: Witness
) -> None:
    """Rank 0 reports an internal error in a collective, because rank 1 was killed."""
    program = """
    if rank == 1:
        (folder / "dying").touch(); os.kill(os.getpid(), signal.SIGKILL)
    wait_for("dying"); failed(1, "worker"); sys.exit(1)
    """
    outcome = run(folder, witness, program, ranks=2)
    assert outcome.code == Code.WORKER_DIED
    assert outcome.error is not None
    assert "worker died (likely out of memory): rank 1 ended by SIGKILL" in outcome.error.line


def test_an_abort_may_be_a_librarys_answer_to_the_failure_of_another_rank(
    folder: RunFolder, witness: Witness
) -> None:
    program = """
    if rank == 0:
        failed(6, "loss"); (folder / "said").touch(); sys.exit(6)
    wait_for("said"); os.kill(os.getpid(), signal.SIGABRT)
    """
    outcome = run(folder, witness, program, ranks=2)
    assert outcome.code == Code.NON_FINITE


def test_a_rank_that_told_its_failure_and_then_hangs_is_ended(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE_S", 0.3)
    began = time.monotonic()
    outcome = run(folder, witness, "failed(4); time.sleep(30)", ranks=2)
    assert time.monotonic() - began < 10
    assert outcome.code == Code.MODEL


def test_a_stop_before_the_first_step_is_no_failure_of_the_ranks_that_waited(
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


def test_a_full_disk_is_told_by_the_exit_code_when_no_event_could_be_written(
    folder: RunFolder, witness: Witness
) -> None:
    outcome = run(folder, witness, "sys.exit(7)")
    assert (outcome.outcome, outcome.code) == ("failed", Code.DISK)
    assert outcome.error is not None
    assert outcome.error.line.startswith("error[7]: disk: expected space for the run's files")


def test_what_an_earlier_run_wrote_decides_nothing_about_this_one(
    folder: RunFolder, witness: Witness
) -> None:
    (folder / "events.jsonl").write_text(
        '{"type": "finished", "result": {"outcome": "done", "steps": 9}}\n'
    )
    outcome = run(folder, witness, "event(type='log', line='well')")
    assert (outcome.outcome, outcome.code) == ("failed", Code.WORKER_DIED)
    assert [event.type for event in witness.events] == ["log"]


def test_a_key_that_native_code_printed_is_neither_relayed_nor_kept(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "aBcD1234" * 4
    monkeypatch.setattr(redact, "_pattern", lambda: redact.compile_pattern({"SOME_TOKEN": key}))
    run(folder, witness, f"os.write(1, b'native {key}\\n'); finished()")
    assert witness.lines == ["native [redacted]"]
    assert (folder / "log.txt").read_text() == "native [redacted]\n"


def test_workers_learn_whose_death_to_watch_for_and_inherit_the_lock(
    folder: RunFolder, witness: Witness
) -> None:
    program = """
    links = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if int(number) < 20 and
             os.path.exists(f"/proc/self/fd/{number}")]
    print(os.environ["TRAINER_PARENT_PID"], str(folder / ".lock") in links)
    finished()
    """
    run(folder, witness, program)
    assert witness.lines == [f"{os.getpid()} True"]


def test_a_host_that_waits_three_seconds_gets_its_answer_in_time(
    folder: RunFolder, witness: Witness
) -> None:
    """A save that takes longer than the grace is given up: the last checkpoint is whole, and the
    parent can still report.
    """
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
