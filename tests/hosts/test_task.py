"""Today's host as its SDK sees us: rows, checkpoints, artifacts, resumed checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plugin.base.errors import Code, JobError, Problem
from plugin.hosts.task import TaskHost, chosen_checkpoint, copy_checkpoint
from plugin.parent.launch import LaunchPlan
from plugin.run.events import MetricsEvent, ProgressEvent
from plugin.run.folder import RunFolder
from plugin.run.outcome import Outcome, Result
from plugin.run.run_file import RunFile


class Lab:
    """The SDK with recorded calls; it copies folders as the real one does."""

    def __init__(self, root: Path):
        self.checkpoints, self.artifacts = root / "checkpoints", root / "artifacts"
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.data: dict[str, Any] = {}
        self.ended: dict[str, Any] = {}
        self.chosen: str | None = None

    def update_progress(self, percent: int, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def save_checkpoint(self, path: str, name: str) -> str:
        return str(shutil.copytree(path, self.checkpoints / name))

    def get_checkpoint_paths(self) -> list[str]:
        return sorted(map(str, self.checkpoints.iterdir()))

    def save_artifact(self, path: str, name: str) -> None:
        copy = shutil.copytree if Path(path).is_dir() else shutil.copy
        self.artifacts.mkdir(exist_ok=True)
        copy(path, self.artifacts / name)

    def set_job_data_field(self, name: str, value: Any) -> None:
        self.data[name] = value

    def get_job_data(self) -> dict[str, Any]:
        return self.data

    def get_checkpoint_to_resume(self) -> str | None:
        return self.chosen

    def finish(self, message: str, score: dict[str, float]) -> None:
        self.ended = {"message": message, "score": score}

    def error(self, message: str) -> None:
        self.ended = {"error": message}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    root = tmp_path / "job"
    (root / "checkpoints").mkdir(parents=True)
    return Lab(root)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    made.write_run(RunFile(params={"adaptor_name": "mine"}))
    return made


@pytest.fixture
def host(lab: Lab, folder: RunFolder) -> TaskHost:
    host = TaskHost(lab)
    host.started(folder, LaunchPlan((), ({},), (), ""))
    return host


def progress(step: int, loss: float | None, percent: float) -> ProgressEvent:
    return ProgressEvent(phase="train", step=step, steps=100, loss=loss, percent=percent)


def metrics(step: int, **figures: float) -> MetricsEvent:
    return MetricsEvent(step=step, metrics=figures)


TRAIN = {"loss": 0.9, "learning_rate": 1e-4, "tokens_per_s": 10.0}
EVAL = {"eval/loss": 0.7, "eval/loss_ci95": 0.1}
STOPPED = Outcome("stopped", 0, result=Result(outcome="stopped", steps=0))


def test_changed_figures_are_sent_with_the_training_loss(
    host: TaskHost, lab: Lab, folder: RunFolder
) -> None:
    host.event(progress(0, None, 0))
    host._send()
    host._send()  # nothing has changed
    host.event(progress(9, 0.8, 9))
    host._send()
    host.event(progress(10, 0.9, 10))
    host.event(metrics(10, **TRAIN))
    host.event(metrics(10, **EVAL, **{"eval/documents": 60.0, "eval/loss_ci95_t00_10": 0.2}))
    host.event(metrics(11, **TRAIN))
    host.event(metrics(12, **{**TRAIN, "loss": 0.5}))
    host._send()
    host.finished(folder, STOPPED)
    assert lab.rows == [(9, {"loss": 0.8}), (10, {**TRAIN, **EVAL}), (12, {**TRAIN, "loss": 0.5})]


def test_the_host_keeps_the_checkpoints_that_the_run_keeps(
    host: TaskHost, lab: Lab, folder: RunFolder
) -> None:
    for step in (2, 4, 6):  # save_total_limit 2
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "state.json").write_text("{}")
        (folder / f"checkpoint-{step}" / "digests.json").write_text("{}")
        if step == 6:
            shutil.rmtree(folder / "checkpoint-2")
        host._save_checkpoint(folder / f"checkpoint-{step}")
    assert [Path(path).name for path in lab.get_checkpoint_paths()] == [
        "checkpoint-4",
        "checkpoint-6",
    ], "run.json is none"
    assert lab.data["checkpoints"] == lab.get_checkpoint_paths()
    shutil.rmtree(folder / "checkpoint-4")
    host._save_checkpoint(folder / "checkpoint-4")  # the copying was slower than the run
    assert [Path(path).name for path in lab.get_checkpoint_paths()] == ["checkpoint-6"]
    host.finished(folder, STOPPED)


def test_what_a_run_leaves_is_handed_over(host: TaskHost, lab: Lab, folder: RunFolder) -> None:
    for name in ("tb", "adapter"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    for name in ("log.txt", "samples.jsonl"):
        (folder / name).write_text(name)
    host.finished(folder, Outcome("done", 0, result=Result(outcome="done", steps=3)))
    found = {path.name for path in lab.artifacts.iterdir()}
    assert found == {"run.json", "log.txt", "samples.jsonl", "tb", "adapter"}
    assert lab.ended["message"].startswith("done: 3 steps")


def test_a_failure_hands_its_log_over_first(host: TaskHost, lab: Lab, folder: RunFolder) -> None:
    (folder / "log.txt").write_text("why")
    host.finished(folder, Outcome("failed", 8, Problem("worker", "e", "g", code=Code.WORKER_DIED)))
    assert (lab.artifacts / "log.txt").read_text() == "why"
    assert lab.ended == {"error": "error[8]: worker: expected e, got g."}


def test_a_stop_by_signal_says_what_was_saved(host: TaskHost, lab: Lab, folder: RunFolder) -> None:
    host.finished(folder, Outcome("stopped", 143))
    assert lab.data["completion_details"] == "stopped immediately; nothing was saved"
    assert lab.ended == {}, "the host has marked the job itself"


def test_a_copied_checkpoint_becomes_a_run_to_resume(
    host: TaskHost, lab: Lab, folder: RunFolder, tmp_path: Path
) -> None:
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "state.json").write_text("{}")
    host._save_checkpoint(folder / "checkpoint-4")
    host.finished(folder, STOPPED)
    run_dir = tmp_path / "next"
    for _ in range(2):  # a restarted job finds its own run there
        copy_checkpoint(lab.checkpoints / "checkpoint-4", run_dir)
        assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoint-4", "run.json"]
        assert [path.name for path in (run_dir / "checkpoint-4").iterdir()] == ["state.json"], (
            "its digests are of these files"
        )
        assert json.loads((run_dir / "run.json").read_text())["params"] == {"adaptor_name": "mine"}
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("run.json", None),
        ("checkpoint-4", ["run.json"]),
        ("checkpoint-4", ["state.json"]),
        ("model", ["state.json", "run.json"]),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_refused(
    tmp_path: Path, name: str, files: list[str] | None
) -> None:
    chosen = tmp_path / "checkpoints" / name
    chosen.parent.mkdir()
    if files is None:
        chosen.write_text("{}")
    for file in files or ():
        chosen.mkdir(exist_ok=True)
        (chosen / file).write_text("{}")
    with pytest.raises(
        JobError,
        match=r"resume: expected a checkpoint that this trainer wrote, got .*Choose one of the job's",
    ):
        copy_checkpoint(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_chosen_checkpoint_that_is_gone_is_refused(lab: Lab) -> None:
    assert chosen_checkpoint(lab) is None
    lab.data |= {"parent_job_id": "7", "resumed_from_checkpoint": "checkpoint-4"}
    with pytest.raises(JobError, match=r"resume: .*got checkpoint-4 of job 7, which is not there"):
        chosen_checkpoint(lab)
    lab.chosen = "/there/checkpoint-4"
    assert chosen_checkpoint(lab) == Path("/there/checkpoint-4")
