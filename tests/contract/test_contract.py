"""Promises of every host to its users: one suite, each scenario on each host."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.support import processes_naming, wait_until

from .drivers import LONGEST_S, FolderDriver, Host, LabDriver, Running

ENDLESS = {"train_steps": 1_000_000, "save_steps": 1_000_000, "logging_steps": 1000}


@pytest.fixture(scope="session")
def job(tiny_bert: Path) -> dict[str, Any]:
    """Return four steps of the tiny model, evaluated at the end."""
    common = {
        "model_name": tiny_bert,
        "dataset_name": "toy_ds",
        "train_device": "cpu",
        "max_length": 64,
        "batch_size": 4,
    }
    short = {
        "train_steps": 4,
        "eval_steps": 4,
        "eval_on_start": "false",
        "save_steps": 4,
        "logging_steps": 2,
        "learning_rate": 3e-3,
    }
    return {name: str(value) for name, value in {**common, **short}.items()}


def trains(running: Running) -> None:
    def two_steps() -> bool:
        assert running.program.poll() is None, running.program.communicate()[0]
        path = running.folder / "progress.json"
        return path.exists() and json.loads(path.read_text())["step"] >= 2

    wait_until(two_steps, "two steps", deadline_s=LONGEST_S)


def test_done(host: Host, job: dict[str, Any]) -> None:
    ended = host.start("1", job).end()
    assert (ended.outcome, ended.code) == ("done", 0), ended.log
    result = json.loads((ended.folder / "run.json").read_text())["result"]
    assert result["outcome"] == "done"
    assert ended.score == pytest.approx(result["eval_loss"])
    assert (ended.folder / "fused" / "config.json").exists()
    assert "4 steps" in ended.log
    assert ended.left == ()


def test_stopped(host: Host, job: dict[str, Any]) -> None:
    running = host.start("2", {**job, **ENDLESS, "eval_strategy": "no"})
    trains(running)
    running.stop()
    ended = running.end()
    assert ended.outcome == "stopped", ended.log
    assert ended.code == (143 if isinstance(host, LabDriver) else 0), (
        ended.log
    )  # stopped there by a signal
    assert list(ended.folder.glob("checkpoint-*")), "what was learned is saved"
    assert ended.left == ()


def test_bad_parameter(host: Host, job: dict[str, Any]) -> None:
    ended = host.start("3", {**job, "learning_rate": "fast", "max_length": "-1"}).end()
    assert ended.outcome == "failed"
    assert ended.code != 0
    assert "learning_rate: expected a number" in ended.details
    assert "max_length: expected an integer >= 1 and <= 1048576, got '-1'" in ended.details, (
        "every problem at once"
    )
    assert not ended.folder.exists()


@pytest.mark.contract
def test_crashed_worker(host: Host, job: dict[str, Any]) -> None:
    running = host.start("4", {**job, **ENDLESS, "eval_strategy": "no"})
    trains(running)
    (worker,) = [pid for pid in processes_naming(str(running.folder)) if pid != running.program.pid]
    os.kill(worker, signal.SIGKILL)
    ended = running.end()
    assert ended.outcome == "failed"
    assert ended.code != 0
    assert "worker died (likely out of memory)" in ended.details
    assert ended.log.splitlines()[-1] == ended.details or isinstance(host, FolderDriver)
    assert ended.left == ()


@pytest.mark.contract
def test_sweep_run(host: Host, job: dict[str, Any]) -> None:
    good = host.start("5", job, sweep="0").end()
    bad = host.start("5", {**job, "learning_rate": "0.1x"}, sweep="1").end()
    assert (good.outcome, bad.outcome) == ("done", "failed")
    assert good.score is not None
    assert bad.score is None or bad.score > 1e6 > good.score, "a failed run never wins"


@pytest.mark.contract
def test_requeued_template(host: Host, job: dict[str, Any]) -> None:
    first = host.start("6", {**job, "lora": "true"}, template="again").end()
    second = host.start("7", {**job, "lora": "true"}, template="again").end()
    assert (first.outcome, second.outcome) == ("done", "done"), second.log
    assert first.folder != second.folder
    assert all(
        (ended.folder / name).is_dir() for ended in (first, second) for name in ("adapter", "fused")
    )


@pytest.mark.contract
def test_resume(host: Host, job: dict[str, Any]) -> None:
    first = host.start("8", job).end()
    assert first.outcome == "done", first.log
    second = host.start(
        "9", {**job, "train_steps": "6", "eval_steps": "6", "resume": str(first.folder)}
    ).end()
    assert second.outcome == "done", second.log
    assert second.folder == first.folder
    assert "resuming from step 4" in second.log
    assert json.loads((second.folder / "run.json").read_text())["result"]["steps"] == 6


@pytest.mark.contract
def test_unicode_names(host: Host, job: dict[str, Any]) -> None:
    ended = host.start("10", job, template="Größe und 日本 & mehr").end()
    assert (ended.outcome, ended.code) == ("done", 0), ended.log
