"""Turns of a worker: starts, ends, adoption, and what a kill between two of its lines leaves."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.support import wait_until, write_record

from plugin.base.files import take_lock
from plugin.queue import worker
from plugin.queue.ending import ended
from plugin.queue.job import JobRecord, utc
from plugin.queue.shelves import Shelves

YAML = "dataset_name: missing.jsonl\nmodel_name: m\ntrain_device: cpu\n"


def test_a_refused_job_fails_and_the_next_one_starts(held: Any, job: dict[str, Any]) -> None:
    held.queue.add(job, "a")
    held.queue.add(job | {"run_dir": str(held.queue.root / "own")}, "b")
    assert held.turn() is True
    first, second = held.queue.jobs()
    assert (first.state, second.state, second.place) == ("running", "waiting", 1)
    assert Path(first.run_dir).parent == held.queue.root
    assert first.run_dir.endswith("-a")
    wait_until(lambda: not held.turn(), "both jobs to end")
    second, first = held.queue.jobs()
    assert (first.state, first.code, first.run_dir) == ("failed", 3, "")
    assert first.error.startswith("dataset_name: expected")
    assert "error[3]: dataset_name" in held.queue.log("a").read_text()
    assert (second.state, second.code) == ("failed", 3)
    assert not (held.queue.root / "own").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", "config: expected a readable YAML or JSON file"),
        ("- 1\n", "config: expected parameters as `name: value`"),
        ("", "config: expected parameters as `name: value`"),
        (YAML + "batch_size: x\nlr: 2\n", "lr: expected a known parameter"),
        ("a: &a [1]\nb: *a\n", "config: expected a readable YAML"),
        ("\x00\x01", "config: expected a readable YAML"),
        (YAML + "stages: 3\n", "stages: expected a list"),
        (YAML.replace("cpu", "auto") + "gpu_ids: '7'\n", "gpu_ids: expected GPUs that exist"),
    ],
)
def test_a_wrong_file_fails_and_stops_nothing(held: Any, text: str, error: str) -> None:
    held.copy_in("mine <b>.yaml", text)
    assert held.turn() is False
    (job,) = held.queue.jobs()
    assert (job.name, job.state, job.code) == ("mine-b", "failed", 2)
    assert job.error.startswith(error)
    assert "\n" not in job.error
    assert held.queue.log("mine-b").read_text().startswith("error[2]: ")


def test_a_wrong_file_that_is_fresh_is_left_alone(held: Any) -> None:
    path = held.copy_in("a.yaml", "model_name: m\ndata")
    os.utime(path)
    assert held.turn() is True  # it may still be being copied
    assert held.states() == {"a": "waiting"}
    assert held.queue.jobs()[0].error.startswith("config: expected a readable")


def test_an_unreadable_file_fails(held: Any) -> None:
    held.copy_in("a.yaml", "x" * (1 << 19))
    assert held.turn() is False
    assert "more than 262144 bytes" in held.queue.jobs()[0].error


@pytest.fixture
def adopted(held: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Leave a running job of an earlier worker: a process that holds the job's lock."""
    held.copy_in("00010-a.yaml", YAML, "running")
    lock = take_lock(held.shelves.beside("00010-a", ".lock"))
    assert lock is not None
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(words, pass_fds=[lock]) as process:
        os.close(lock)
        record = JobRecord(gpus=["cpu"], devices="cpu", pid=process.pid, started=utc())
        held.shelves.write_record("00010-a", record)
        yield process
        process.kill()


def test_a_job_of_a_killed_worker_is_adopted(
    held: Any, adopted: subprocess.Popen[bytes], job: dict[str, Any]
) -> None:
    held.queue.add(job, "b")
    for _ in range(2):
        assert held.turn() is True
    assert held.states() == {"00010-a": "running", "00020-b": "waiting"}
    adopted.kill()
    adopted.wait()
    held.turn()
    assert held.states() == {"00010-a": "failed", "00020-b": "running"}
    error = held.queue.jobs()[1].error
    assert error == "train: expected a run to its end, got none: it died."


def test_a_cancelled_running_job_gets_sigterm(held: Any, adopted: subprocess.Popen[bytes]) -> None:
    assert held.queue.cancel("a").state == "running"
    assert adopted.wait(60) == -signal.SIGTERM
    assert held.turn() is False
    assert held.states() == {"00010-a": "cancelled"}


def test_a_second_cancel_sends_no_second_signal(
    held: Any, adopted: subprocess.Popen[bytes]
) -> None:
    """Train would take it as the wish to end without saving."""
    held.shelves.write_record(
        "00010-a", JobRecord(pid=adopted.pid, gpus=["cpu"], stop_asked=True, started=utc())
    )
    assert held.queue.cancel("a").state == "running"
    assert held.turn() is True
    assert adopted.poll() is None


def test_a_job_without_a_number_is_stopped_by_its_folder(
    held: Any, adopted: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Its worker was killed between the start of train and the note of its process."""
    write_record(tmp_path, None)
    held.shelves.write_record(
        "00010-a", JobRecord(gpus=["cpu"], run_dir=str(tmp_path), started=utc())
    )
    held.queue.cancel("a")
    assert (tmp_path / "STOP").exists()
    assert adopted.poll() is None


@pytest.mark.parametrize("file", ["run.json", "stages.json"])
def test_a_stop_before_its_run_began_is_asked_later(
    held: Any, adopted: subprocess.Popen[bytes], tmp_path: Path, file: str
) -> None:
    """Its worker was killed as it started the job, whose train has no folder yet to look into."""
    run_dir = tmp_path / "run"
    held.shelves.write_record(
        "00010-a", JobRecord(gpus=["cpu"], run_dir=str(run_dir), started=utc())
    )
    held.queue.cancel("a")
    assert held.turn() is True
    assert not run_dir.exists()
    run_dir.mkdir()
    (run_dir / file).touch()
    assert held.turn() is True
    assert (run_dir / "STOP").exists()
    assert adopted.poll() is None


def test_an_error_of_one_job_stops_no_other(held: Any, job: dict[str, Any]) -> None:
    held.queue.add(job, "a")
    (held.shelves.path / "records" / "00010-a.log").mkdir()
    held.copy_in("b.yaml", "x: [")
    with pytest.raises(OSError, match="directory"):
        held.turn()
    assert held.states() == {"00010-a": "waiting", "b": "failed"}


def test_a_worker_outlives_a_full_disk_that_takes_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own log lies on the disk of the queue."""
    shelves = Shelves(tmp_path / "queue")
    shelves.make()
    lock = shelves.lock_of_worker()
    assert lock is not None
    turns = iter((OSError(errno.ENOSPC, "No space left on device"), False))

    def turn(shelves: Shelves, children: worker.Children) -> bool:
        found = next(turns)
        if isinstance(found, OSError):
            raise found
        return found

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "turn", turn)
    monkeypatch.setattr(worker, "POLL_S", 0)
    monkeypatch.setattr(sys, "stderr", Full())
    assert worker.work(tmp_path, lock) == 0
    assert next(turns, None) is None


def test_a_process_number_that_found_no_room_is_noted_later(
    held: Any, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Shelves, name: str, record: JobRecord) -> None:
        if record.pid:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, record)

    write = Shelves.write_record
    held.queue.add(job, "a")
    with monkeypatch.context() as patch:
        patch.setattr(Shelves, "write_record", full)
        with pytest.raises(OSError, match="No space"):
            held.turn()
    os.kill(held.children["00010-a"].pid, signal.SIGSTOP)  # it lives for another turn
    held.turn()
    record = held.shelves.record("00010-a")
    assert record.pid == held.children["00010-a"].pid


def test_a_dead_job_is_sent_no_signal(held: Any, adopted: subprocess.Popen[bytes]) -> None:
    """Its process number may be another program's by now."""
    lock = held.shelves.beside("00010-a", ".lock")
    lock.unlink()
    assert held.queue.cancel("a").state == "running"
    assert adopted.poll() is None


def test_a_lost_record_blocks_all_devices(
    held: Any, adopted: subprocess.Popen[bytes], job: dict[str, Any]
) -> None:
    held.shelves.beside("00010-a", ".json").write_text("{")
    held.queue.add(job, "b")
    held.turn()
    assert held.states() == {"00010-a": "running", "00020-b": "waiting"}
    assert adopted.poll() is None


@pytest.mark.parametrize("record", [None, JobRecord(run_dir="/nowhere", started=utc())])
def test_a_job_that_never_began_waits_again(held: Any, record: JobRecord | None) -> None:
    """A worker was killed after the move to `running` and before the start of train."""
    held.copy_in("00010-a.yaml", YAML, "running")
    if record:
        held.shelves.write_record("00010-a", record)
    assert held.turn() is True
    assert held.queue.jobs()[0].state == "running"
    assert held.children["00010-a"].poll() is None


def test_an_ended_record_of_a_running_file_is_kept(held: Any) -> None:
    """A worker was killed after the record of the end and before the move to `ended`."""
    held.copy_in("00010-a.yaml", YAML, "running")
    record = JobRecord(state="done", code=0, pid=1, ended="2026-01-01T00:00:00+00:00")
    held.shelves.write_record("00010-a", record)
    assert held.turn() is False
    (job,) = held.queue.jobs()
    assert (job.state, job.ended) == ("done", "2026-01-01T00:00:00+00:00")


def test_a_name_that_has_ended_is_not_used_again(held: Any, job: dict[str, Any]) -> None:
    held.queue.add(job, "a")
    held.queue.cancel("a")
    held.copy_in("00010-a.yaml", "x: [")
    held.turn()
    assert held.states() == {"00010-a": "cancelled", "00010-a-2": "failed"}


@pytest.mark.parametrize(
    ("out", "state", "code"),
    [
        ('{"run_dir": "/r", "outcome": "done", "code": 0, "error": null}\n', "done", 0),
        ('noise\n{"run_dir": null, "outcome": "stopped", "code": 143}\n', "stopped", 143),
        ('{"run_dir": "/r", "outc', "failed", 137),
        ('{"outcome": "odd"}\n', "failed", 137),
        ("[" * 9000, "failed", 137),
    ],
)
def test_the_end_of_a_job_is_what_train_printed(held: Any, out: str, state: str, code: int) -> None:
    held.shelves.beside("a", ".out").write_text(out)
    held.shelves.beside("a", ".log").write_text("line\nlast \x1b[31mwords\n\n")
    record = ended(held.shelves, "a", JobRecord(started=utc()), -signal.SIGKILL)
    assert (record.state, record.code) == (state, code)
    if state == "failed":
        assert "ended by SIGKILL: last \\x1b[31mwords" in record.error


def test_the_end_of_a_silent_job_is_in_its_run_file(held: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_record(run, "stopped")
    record = JobRecord(started=utc(), run_dir=str(run))
    assert ended(held.shelves, "a", record, None).state == "stopped"
    past = time.time() - 60  # of an earlier run, which this job was to resume
    os.utime(run / "run.json", (past, past))
    assert ended(held.shelves, "a", record, None).state == "failed"


def test_the_job_has_the_environment_of_its_starter(
    held: Any, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A module of the user's path reports what the job sees, before main.py runs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os\n"
        "seen = {name: os.environ.get(name) for name in ('PYTHONPATH', 'RANK', 'MINE')}\n"
        f"open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(seen))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{tmp_path}")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MINE", "x")
    held.queue.add(job)
    wait_until(lambda: not held.turn(), "the job to end")
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen == {"PYTHONPATH": str(tmp_path), "RANK": None, "MINE": "x"}


def test_a_job_runs_as_long_as_its_ranks(held: Any, tmp_path: Path) -> None:
    """Ranks whose parent was killed have the devices for some seconds more."""
    held.copy_in("00010-a.yaml", YAML, "running")
    lock = take_lock(tmp_path / ".lock")
    assert lock is not None
    os.pwrite(lock, b"1\n", 0)
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(words, pass_fds=[lock]) as rank:
        os.close(lock)
        record = JobRecord(gpus=["cpu"], pid=1, run_dir=str(tmp_path), started=utc())
        held.shelves.write_record("00010-a", record)
        assert held.turn() is True
        assert held.states() == {"00010-a": "running"}
        rank.kill()
        rank.wait()
    assert held.turn() is False
    assert held.states() == {"00010-a": "failed"}


def test_a_record_with_a_negative_number_is_no_record(held: Any) -> None:
    """A signal to -1 would reach every process of the user."""
    (held.shelves.path / "records" / "00010-x.json").write_text('{"pid": -1}')
    assert held.shelves.record("00010-x") is None


def test_a_signal_without_a_name_is_a_death(held: Any) -> None:
    record = ended(held.shelves, "00010-x", JobRecord(), -signal.SIGRTMIN - 1)
    assert (record.state, record.code) == ("failed", 128 + signal.SIGRTMIN + 1)
    assert f"it was ended by signal {signal.SIGRTMIN + 1}" in record.error
