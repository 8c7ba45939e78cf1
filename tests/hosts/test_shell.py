"""Output of a shell run: lines to copy, and an ending that claims only what happened."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from helpers.support import wait_until

from plugin.hosts.pulse import Pulse
from plugin.hosts.shell import ShellHost
from plugin.parent.launch import LaunchPlan
from plugin.run.events import ProgressEvent, ProgressFile
from plugin.run.folder import RunFolder
from plugin.run.lines import metrics_line, outcome_line
from plugin.run.outcome import Outcome, Result, Throughput


def test_paths_with_spaces_can_be_copied_into_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "my runs" / "é 1")
    (folder / "fused").mkdir(parents=True)
    host = ShellHost()
    host.started(folder, LaunchPlan((), ({},), (), ""))
    host.finished(folder, Outcome("done", 0, result=Result(outcome="done", steps=3, seconds=1)))
    out, err = capsys.readouterr()
    copied = {
        line.split()[0].rstrip(":"): shlex.split(line)[-1] for line in (out + err).splitlines()
    }
    assert copied["chat"] == str(folder.path)
    assert copied["curves"] == str(folder / "tb")
    assert copied["stop"] == str(folder / "STOP")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


STOPPED = Result(outcome="stopped", steps=7, seconds=60.0, loss=1.25)


@pytest.mark.parametrize(
    ("result", "checkpoints", "line"),
    [
        (None, [], "stopped immediately; nothing was saved"),
        (
            None,
            ["checkpoint-4"],
            "stopped immediately, without saving; the last checkpoint is checkpoint-4",
        ),
        (
            Result(outcome="stopped", steps=0),
            [],
            "stopped before the first step; there is nothing to save",
        ),
        (
            STOPPED,
            ["checkpoint-4", "checkpoint-7"],
            "stopped after step 7, loss 1.2500; saved as checkpoint-7",
        ),
        (
            STOPPED.model_copy(update={"loss": None}),
            ["checkpoint-7"],
            "stopped after step 7, loss 0.5000; saved as checkpoint-7",
        ),
    ],
)
def test_a_stop_claims_only_what_was_done_and_saved(
    folder: RunFolder, result: Result | None, checkpoints: list[str], line: str
) -> None:
    progress = ProgressFile(phase="train", step=7, steps=9, percent=77, loss=0.5, heartbeat="")
    (folder / "progress.json").write_text(json.dumps(progress.content()))
    for name in checkpoints:
        (folder / name).mkdir()
    assert outcome_line(Outcome("stopped", 143, result=result), folder) == line


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (1, "done: 1 step in 2.5 s, eval loss 0.7500; 60.0 s with loading, evaluation and saving"),
        (
            1200,
            "done: 1,200 steps in 2.5 s, eval loss 0.7500; 60.0 s with loading, evaluation and saving",
        ),
    ],
)
def test_the_seconds_of_the_steps_are_shown_with_them(
    folder: RunFolder, steps: int, line: str
) -> None:
    speed = Throughput(
        tokens_per_s=9, supervised_tokens_per_s=5, training_seconds=2.5, flops_per_s=1e9
    )
    result = Result(outcome="done", steps=steps, seconds=60.0, eval_loss=0.75, throughput=speed)
    assert outcome_line(Outcome("done", 0, result=result), folder) == line


def test_a_stopped_run_names_the_command_that_resumes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "my run")
    (folder / "checkpoint-7").mkdir(parents=True)
    ShellHost().finished(folder, Outcome("stopped", 0, result=STOPPED))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resume ")]
    words = shlex.split(line)
    assert words[3:] == [
        "train",
        "--config",
        str(folder / "run.json"),
        "--resume",
        "true",
        "--run_dir",
        str(folder.path),
    ]


@pytest.mark.parametrize(
    ("spread", "shown"),
    [(0.0, ""), (0.25, " ± 0.2500"), (0.00002, " ± 2.0e-05"), (float("nan"), "")],
)
def test_a_spread_is_never_shown_as_nought(spread: float, shown: str) -> None:
    assert (
        metrics_line(3, {"eval/loss": 0.5, "eval/loss_ci95": spread})
        == f"step 3: eval loss 0.5000{shown}"
    )


def test_a_silent_run_shows_that_it_lives() -> None:
    lines: list[str] = []
    pulse = Pulse(lines.append, every_s=0.01)
    pulse.start()
    wait_until(
        lambda: any(line.startswith("still loading, for ") for line in lines),
        "a line while it loads",
    )
    pulse.event(ProgressEvent(phase="fuse", step=4, steps=9, percent=0))
    wait_until(
        lambda: any(line.startswith("still fusing, for ") for line in lines),
        "a line while it fuses",
    )
    pulse.stop()


def test_a_run_that_makes_steps_needs_no_sign_of_life() -> None:
    lines: list[str] = []
    pulse = Pulse(lines.append, every_s=0.01)
    pulse.event(ProgressEvent(phase="load", step=3, steps=9, percent=0))
    pulse.event(ProgressEvent(phase="train", step=4, steps=9, percent=0))
    pulse.start()
    pulse.event(ProgressEvent(phase="train", step=5, steps=9, percent=0))
    time.sleep(0.1)  # ten times as long as a silence may last
    pulse.stop()
    assert lines == []
