"""Supervision of small real programs: outcomes, causes of death, relayed lines."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from helpers.supervised import Witness, pid, run, start
from helpers.support import is_running, processes_naming, wait_until

from plugin.base import redact
from plugin.base.errors import Code
from plugin.parent import supervise
from plugin.run.events import LogEvent
from plugin.run.folder import RunFolder
from plugin.run.outcome import Result


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
    """transformers hides a torchvision built for another torch; its error comes first."""
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
def test_only_an_existing_checkpoint_is_called_intact(
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


def test_the_first_failure_is_the_cause(folder: RunFolder, witness: Witness) -> None:
    program = """
    if rank == 1:
        failed(3); (folder / "said").touch(); sys.exit(3)
    wait_for("said"); failed(1, "worker"); sys.exit(1)
    """
    outcome = run(folder, witness, program, ranks=2)
    assert outcome.code == Code.DATA
    assert outcome.error is not None
    assert outcome.error.field == "dataset_name"


def test_a_rank_that_outlives_the_others_is_a_failure(
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


def test_half_an_event_does_not_break_the_parent(folder: RunFolder, witness: Witness) -> None:
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


def test_an_abort_may_follow_from_another_ranks_failure(
    folder: RunFolder, witness: Witness
) -> None:
    program = """
    if rank == 0:
        failed(6, "loss"); (folder / "said").touch(); sys.exit(6)
    wait_for("said"); os.kill(os.getpid(), signal.SIGABRT)
    """
    outcome = run(folder, witness, program, ranks=2)
    assert outcome.code == Code.NON_FINITE


def test_a_rank_that_reports_its_failure_and_hangs_is_ended(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE_S", 0.3)
    began = time.monotonic()
    outcome = run(folder, witness, "failed(4); time.sleep(30)", ranks=2)
    assert time.monotonic() - began < 10
    assert outcome.code == Code.MODEL


def test_a_full_disk_is_known_by_the_exit_code(folder: RunFolder, witness: Witness) -> None:
    outcome = run(folder, witness, "sys.exit(7)")
    assert (outcome.outcome, outcome.code) == ("failed", Code.DISK)
    assert outcome.error is not None
    assert outcome.error.line.startswith("error[7]: disk: expected space for the run's files")


def test_events_of_an_earlier_run_decide_nothing(folder: RunFolder, witness: Witness) -> None:
    (folder / "events.jsonl").write_text(
        '{"type": "finished", "result": {"outcome": "done", "steps": 9}}\n'
    )
    outcome = run(folder, witness, "event(type='log', line='well')")
    assert (outcome.outcome, outcome.code) == ("failed", Code.WORKER_DIED)
    assert [event.type for event in witness.events] == ["log"]


def test_a_key_that_native_code_printed_is_redacted(
    folder: RunFolder, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "aBcD1234" * 4
    monkeypatch.setattr(redact, "_pattern", lambda: redact.compile_pattern({"SOME_TOKEN": key}))
    run(folder, witness, f"os.write(1, b'native {key}\\n'); finished()")
    assert witness.lines == ["native [redacted]"]
    assert (folder / "log.txt").read_text() == "native [redacted]\n"


def test_workers_get_the_parents_pid_and_the_lock(folder: RunFolder, witness: Witness) -> None:
    program = """
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    print(os.environ["TRAINER_PARENT_PID"], str(folder / ".lock") in links)
    finished()
    """
    run(folder, witness, program)
    assert witness.lines == [f"{os.getpid()} True"]
