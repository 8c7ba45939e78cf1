"""Queue as its users see it: adding, listing, moving, cancelling and forgetting, on hostile files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.queue.folder import Queue
from plugin.queue.job import JobRecord
from plugin.queue.shelves import Shelves

YAML = "dataset_name: d.jsonl\nmodel_name: m\ntrain_device: cpu\n"


def refused(job: Any) -> str:
    with pytest.raises(JobError) as error:
        job()
    return str(error.value)


def test_added_jobs_wait_in_their_order(held: Any, job: dict[str, Any]) -> None:
    first, second = held.queue.add(job), held.queue.add(job, "mine")
    assert [first.name, second.name] == ["00010-adaptor", "00020-mine"]
    assert [first.place, second.place] == [1, 2]
    assert held.queue.jobs() == [first, second]
    assert (second.state, second.devices, second.run_dir) == ("waiting", "cpu", "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", second.added)
    assert Path(second.file).read_text().endswith("model_name: m\ntrain_device: cpu\n")


def test_a_wrong_job_is_refused_with_all_problems(held: Any, job: dict[str, Any]) -> None:
    text = refused(lambda: held.queue.add(job | {"batch_size": 0, "x": 1}, "a b"))
    assert [line.partition(":")[0] for line in text.splitlines()] == ["name", "x", "batch_size"]
    assert held.queue.jobs() == []


def test_a_job_moves_to_a_place(held: Any, job: dict[str, Any]) -> None:
    for name in "abc":
        held.queue.add(job, name)
    moved = held.queue.move("c", 1)
    assert (moved.name, moved.place) == ("00005-c", 1)
    assert [one.name for one in held.queue.jobs()] == ["00005-c", "00010-a", "00020-b"]
    held.copy_in("z.yaml", YAML)
    held.copy_in("y.yaml", YAML)
    assert held.queue.move("z", 4).place == 4
    assert held.queue.move("y", 1).place == 1
    assert [one.name[6:] for one in held.queue.jobs()] == ["y", "c", "a", "b", "z"]


def test_a_cancelled_waiting_job_has_ended(held: Any, job: dict[str, Any]) -> None:
    held.queue.add(job, "a")
    ended = held.queue.cancel("a")
    assert (ended.state, ended.name, ended.place) == ("cancelled", "00010-a", 0)
    assert ended.ended >= ended.added > ""
    assert held.queue.jobs() == [ended]
    assert held.turn() is False
    assert "a job that waits or runs, got a, which is ended" in refused(
        lambda: held.queue.cancel("a")
    )
    assert "was started" in refused(lambda: held.queue.log("a"))
    assert held.queue.clear() == 1
    assert list((held.shelves.path / "records").iterdir()) == []


def test_an_unknown_name_gets_a_suggestion(held: Any, job: dict[str, Any]) -> None:
    held.queue.add(job, "dream-long")
    text = refused(lambda: held.queue.cancel("dream-lnog"))
    assert "Did you mean dream-long?" in text
    assert "waits" in refused(lambda: held.queue.move("../../etc", 1))
    held.queue.add(job, "dream-long")
    ambiguous = refused(lambda: held.queue.cancel("dream-long"))
    assert "Name one of 00010-dream-long.yaml, 00020-dream-long.yaml." in ambiguous
    assert held.queue.cancel("00020-dream-long.yaml").state == "cancelled"


def test_hostile_entries_are_no_jobs(held: Any, victim: Path) -> None:
    waiting = held.shelves.path / "waiting"
    (waiting / "link.yaml").symlink_to(victim)
    (waiting / "gone.yaml").symlink_to(waiting / "nothing")
    (waiting / "folder.yaml").mkdir()
    os.mkfifo(waiting / "pipe.yaml")
    (waiting / ".00010-half.yaml.77.part").write_text("a: ")
    (waiting / ".hidden.yaml").write_text(YAML)
    (waiting / "note.txt").write_text("x")
    assert held.queue.jobs() == []
    assert held.turn() is False
    assert len(list(waiting.iterdir())) == 7


@pytest.mark.parametrize(
    "name", ["<img src=x>.yaml", "a\n\x1b[31m.yml", "a\udcff.yaml", "-rf.yaml", f"{'n' * 249}.yaml"]
)
def test_hostile_names_are_listed_and_cancelled(held: Any, name: str) -> None:
    held.copy_in(name, YAML)
    (job,) = held.queue.jobs()
    assert (job.state, job.error, job.devices) == ("waiting", "", "cpu")
    assert re.fullmatch(r"[\w.-]{1,70}", held.queue.cancel(job.name).name)
    assert list(held.states().values()) == ["cancelled"]


def test_two_files_of_one_name_are_two_jobs(held: Any) -> None:
    for name in ("a.yaml", "a.yml"):
        held.copy_in(name, YAML)
    assert [job.name for job in held.queue.jobs()] == ["a", "a"]
    held.queue.cancel("a.yml")
    held.queue.cancel("a")
    assert held.states() == {"a-2": "cancelled", "a": "cancelled"}


@pytest.mark.parametrize("text", ["{", '{"state": "odd"}', "[" * 5000, '"\\ud800"'])
def test_a_broken_record_is_said(held: Any, text: str) -> None:
    held.copy_in("00010-a.yaml", YAML, "ended")
    held.copy_in("00010-a.json", text, "records")
    (job,) = held.queue.jobs()
    assert (job.state, job.error) == ("failed", "its record is lost")


def test_a_record_is_read_again_only_if_changed(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page lists the jobs every two seconds, hundreds of ended ones among them."""
    read: list[str] = []
    text = Shelves.text
    monkeypatch.setattr(
        Shelves, "text", lambda self, name, ending: read.append(name) or text(self, name, ending)
    )
    for name in ("00010-a", "00020-b"):
        held.copy_in(f"{name}.yaml", YAML, "ended")
        held.shelves.write_record(name, JobRecord(state="done", devices="cpu"))
    assert held.queue.jobs() == held.queue.jobs()
    assert sorted(read) == ["00010-a", "00020-b"]
    held.shelves.write_record("00010-a", JobRecord(state="failed", devices="cpu"))
    assert held.states() == {"00010-a": "failed", "00020-b": "done"}
    held.shelves.beside("00010-a", ".json").unlink()
    assert [job.error for job in held.queue.jobs()] == ["its record is lost", ""]
    assert len(read) == 3


def test_a_job_in_two_listings_is_shown_once(held: Any) -> None:
    for shelf in ("waiting", "running"):
        held.copy_in("00010-a.yaml", YAML, shelf)
    held.shelves.write_record("00010-a", JobRecord(devices="cpu"))
    assert held.states() == {"00010-a": "running"}


def test_a_name_may_end_like_a_file(held: Any, job: dict[str, Any]) -> None:
    held.queue.add(job, "a.yaml")
    for name in ("a.yaml", "00010-a.yaml", "00010-a.yaml.yaml"):
        assert held.queue.move(name, 1).name == "00010-a.yaml"


def test_a_root_without_a_queue_is_empty(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "runs")
    assert queue.jobs() == []
    assert queue.has_worker() is False
    assert not (tmp_path / "runs").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path, job: dict[str, Any]) -> None:
    (tmp_path / "runs").touch()
    text = refused(lambda: Queue(tmp_path / "runs").add(job))
    assert text.startswith("run_root: expected a folder that can be written")
