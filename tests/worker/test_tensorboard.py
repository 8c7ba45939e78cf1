"""Unwritable TensorBoard folder: one warning, and every curve in metrics.jsonl."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.support import read_lines
from torch.utils.tensorboard import SummaryWriter

from plugin.run.folder import RunFolder
from plugin.run.heartbeat import Heartbeat
from plugin.worker.reporter import Reporter
from plugin.worker.tensorboard import Board, hush_writer_thread


def warnings_of(folder: Path) -> list[str]:
    return [
        event["line"] for event in read_lines(folder / "events.jsonl") if event["type"] == "log"
    ]


def spoil(folder: Path) -> None:
    shutil.rmtree(folder / "tb", ignore_errors=True)
    (folder / "tb").write_text("a file")


def report(folder: Path, spoilt_before: int) -> None:
    """Report six steps in every way, with the folder spoilt before one of them, or before all."""
    if spoilt_before == 0:
        spoil(folder)
    reporter = Reporter(RunFolder(folder), Heartbeat(folder / ".heartbeat-0"), speaks=True)
    for step in range(1, 7):
        if step == spoilt_before:
            spoil(folder)
        reporter.metrics(step, {"loss": 1 / step, "grad_norm": 1.0})
        reporter.lengths("train", np.array([step, 2 * step]))
        reporter.sample(step, 1, prompt="p", expected="e", text="t", nfe=1, trace=[])
        reporter.flush()
    reporter.hparams({"seed": 1}, {"loss": 0.5})
    reporter.close()


@pytest.fixture(autouse=True)
def quiet_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        threading, "excepthook", threading.excepthook
    )  # the setting below is undone
    hush_writer_thread()


@pytest.mark.parametrize("spoilt_before", [0, 1, 4])
def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, spoilt_before: int) -> None:
    report(tmp_path, spoilt_before)
    (line,) = warnings_of(tmp_path)
    assert line.startswith("warning: tb: ")
    assert line.endswith("; no more curves there, metrics.jsonl has them all")
    assert [record["step"] for record in read_lines(tmp_path / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_writable_folder_gives_no_warning(tmp_path: Path) -> None:
    report(tmp_path, 99)
    assert warnings_of(tmp_path) == []
    assert list((tmp_path / "tb").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("act", [SummaryWriter.flush, SummaryWriter.close])
def test_no_other_mistake_is_swallowed(
    tmp_path: Path, act: Callable[[SummaryWriter], None]
) -> None:
    said: list[str] = []
    drawn = Board(tmp_path / "tb", said.append, 0)
    with pytest.raises(TypeError):
        drawn.draw(lambda writer: act(writer, "too much"))
    drawn.close()
    assert said == []
