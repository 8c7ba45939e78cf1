"""Today's Transformer Lab: a task that runs `python main.py --task` beside the SDK `lab`, which the
host installs.

Every call of the SDK happens on one thread of its own, in order: some copy gigabytes, and a stop
must be answered within 3 s.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.digests import DIGESTS
from ..base.errors import JobError, Problem, one_line
from ..base.files import is_plain, part_beside, write_whole
from ..config.methods import pipeline_tag
from ..parent.launch import LaunchPlan
from ..parent.wandb import FACTS
from ..run.events import CheckpointEvent, Event, MetricsEvent, ProgressEvent, SampleEvent
from ..run.folder import RunFolder
from ..run.lines import counted, metrics_line, outcome_line, sample_line
from ..run.outcome import Outcome
from ..run.state import STATE
from .pulse import Pulse

EVERY_S = 1.0
# The host sends SIGTERM to the whole tree, SIGKILL 3 s later: the workers have this long to save,
# the rest is for the last words.
STOP_GRACE_S = 1.5
LAST_WORDS_S = 0.8
ARTIFACTS = (
    "run.json",
    "log.txt",
    "samples.jsonl",
    "tb",
)  # beside the model, the checkpoints and the metrics
ADAPTER = "adapter"
_NAME = re.compile(r"checkpoint-\d+")


class Caller:
    """A thread that makes the calls it is given, one after the other."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._calls = say, queue.SimpleQueue[Callable[[], object] | None]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def call(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def finish(self, timeout_s: float | None = None) -> None:
        """Wait for what was asked so far."""
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while call := self._calls.get():
            try:
                call()
            except (
                OSError,
                ValueError,
                RuntimeError,
            ) as error:  # the run goes on without the host's page of it
                self._say(f"the host did not take a report: {error}")


class LabHost:
    stop_grace_s = STOP_GRACE_S

    def __init__(self, lab: Any):
        self._lab = lab
        self._pulse = Pulse(self.line)
        self._caller = Caller(self.line)
        self._percent, self._sent = 0, -math.inf
        self._told = 0  # the percentage that the host knows
        self._rows: dict[int, dict[str, float]] = {}  # step -> figures that the host does not know
        self._step: int = 0  # the newest finished one, and its loss
        self._loss: float | None = None
        self._latest: dict[str, float] = {}

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        where = f"GPU {', '.join(plan.gpus)}" if plan.gpus else "CPU"
        self.line(f"run folder: {folder.path}")
        self.line(f"devices: {where}, {counted(len(plan.ranks), 'process', 'processes')}")
        self._pulse.start()

    def line(self, text: str) -> None:
        with self._pulse.speaking():
            print(one_line(text), flush=True)

    def event(self, event: Event) -> None:
        self._pulse.event(event)
        if isinstance(event, ProgressEvent):
            self._percent = min(99, int(event.percent))
            self._step, self._loss = event.step, event.loss
        elif isinstance(event, MetricsEvent):
            self.line(metrics_line(event.step, event.metrics))
            figures = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
            self._rows[event.step] = self._rows.get(event.step, {}) | figures
            self._latest |= figures
        elif isinstance(event, SampleEvent):
            self.line(sample_line(event))
        elif isinstance(event, CheckpointEvent):
            path = Path(event.path)
            self._caller.call(lambda: self._save_checkpoint(path))

    def stop_wanted(self) -> bool:
        if time.monotonic() - self._sent >= EVERY_S:
            self._send()
        return False  # a stop comes as a signal here

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        self._send()
        if outcome.error:
            self._save_artifacts(folder, outcome)
            self.failed([outcome.error])
            return
        line = outcome_line(outcome, folder)
        if outcome.outcome == "stopped" and (saved := folder.checkpoints()):
            line += f". To resume, start a job from this job's {saved[-1].name}"
        if (folder / FACTS).exists() and (
            url := json.loads((folder / FACTS).read_text(encoding="utf-8"))["url"]
        ):
            self._caller.call(lambda: self._lab.capture_wandb_url(url))
        if outcome.code:  # the host has marked the job as stopped itself, and waits no longer
            self._caller.call(lambda: self._lab.set_job_data_field("completion_details", line))
        if outcome.outcome == "done" and (folder / "fused").is_dir():
            self._caller.call(lambda: self._save_model(folder))
        self._save_artifacts(folder, outcome)
        if not outcome.code:
            score = {"eval/loss": self._latest["eval/loss"]} if "eval/loss" in self._latest else {}
            self._caller.call(lambda: self._lab.finish(message=line, score=score))
        self._pulse.stop()
        self._caller.finish(LAST_WORDS_S if outcome.code else None)
        self.line(line)

    def failed(self, problems: Sequence[Problem]) -> None:
        """The cause, where the job's page shows it and last in its log."""
        self._pulse.stop()
        details = "\n".join(problem.line for problem in problems)
        self._caller.call(lambda: self._lab.error(message=details))
        self._caller.finish()
        for problem in problems:
            self.line(problem.line)

    def _send(self) -> None:
        """Send what has moved: every evaluation, and the newest other figures, for the host asks
        for one report a second.

        Each row holds the training loss; the host's page shows the newest row alone.
        """
        self._sent, rows, self._rows = time.monotonic(), self._rows, {}
        percent = self._percent
        if not rows and percent != self._told:
            rows = {self._step: {}}
        loss = {} if self._loss is None else {"loss": self._loss}
        for step, figures in rows.items():
            if "eval/loss" in figures or step == max(rows):
                row = loss | figures
                self._caller.call(
                    lambda step=step, row=row: self._lab.update_progress(
                        percent, metrics=row, step=step
                    )
                )
        self._told = percent

    def _save_checkpoint(self, path: Path) -> None:
        """Copy a checkpoint to the host, and remove what the run has removed: the host keeps as
        many as `save_total_limit` says.
        """
        run = RunFolder(path.parent)
        try:
            if path.is_dir():  # a slow copy of the one before may have outlived it
                saved = Path(self._lab.save_checkpoint(str(path), path.name))
                if saved.is_dir():  # a folder of this machine, and no bucket
                    write_whole(
                        saved / "run.json", (run / "run.json").read_text(encoding="utf-8")
                    )  # for the job that resumes
        finally:
            kept = {one.name for one in run.checkpoints()}
            there = [Path(one) for one in self._lab.get_checkpoint_paths()]
            for one in there:
                if one.name not in kept and is_checkpoint(one):
                    shutil.rmtree(one)
            self._lab.set_job_data_field(
                "checkpoints", [str(one) for one in there if one.name in kept]
            )

    def _save_artifacts(self, folder: RunFolder, outcome: Outcome) -> None:
        made = (
            (ADAPTER,) if outcome.outcome == "done" else ()
        )  # that of an earlier end is not this one's
        for name in (*ARTIFACTS, *made):
            if (path := folder / name).exists():
                self._caller.call(lambda path=path: self._lab.save_artifact(str(path), path.name))

    def _save_model(self, folder: RunFolder) -> None:
        params = folder.read_run().params
        architecture = json.loads((folder / "fused" / "config.json").read_text(encoding="utf-8"))[
            "architectures"
        ][0]
        tag = pipeline_tag(params["training_method"])
        self._lab.save_model(
            str(folder / "fused"),
            params["adaptor_name"],
            architecture=architecture,
            pipeline_tag=tag,
        )


def started_sdk() -> Any:
    """The host's SDK, with the job that the host started us for."""
    from lab import lab  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # the host has it, we do not

    lab.init()
    return lab


def task_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's parameters as `parse` takes them.

    Launched through the API they may come as the schema of task.yaml itself.
    """
    unwrapped = {
        name: value.get("default") if isinstance(value, dict) else value
        for name, value in config.items()
    }
    return {name: value for name, value in unwrapped.items() if name != "experiment_name"}


def chosen_checkpoint(lab: Any) -> Path | None:
    """Return the checkpoint of another job that the user chose to resume from.

    Raises JobError (exit 2) for one that is gone.
    """
    if path := lab.get_checkpoint_to_resume():
        return Path(path)
    data = lab.get_job_data()
    if name := data.get("resumed_from_checkpoint"):
        got = f"{name} of job {data.get('parent_job_id')}, which is not there"
        raise JobError(
            Problem(
                "resume",
                "a checkpoint of an earlier job",
                got,
                "Choose one that the job's page lists.",
            )
        )
    return None


def is_checkpoint(folder: Path) -> bool:
    """Tell a checkpoint of ours by its name and its digests; a link is none."""
    return (
        bool(_NAME.fullmatch(folder.name))
        and not folder.is_symlink()
        and is_plain(folder / DIGESTS)
    )


def go_on_here(checkpoint: Path, run_dir: Path) -> None:
    """Make `run_dir` a run that stands at the checkpoint of another job.

    Raises JobError (exit 2) if it is none of this program.
    """
    record = checkpoint / "run.json"
    if not (_NAME.fullmatch(checkpoint.name) and is_plain(checkpoint / STATE) and is_plain(record)):
        fix = "Choose one of the job's checkpoint-N."
        raise JobError(
            Problem("resume", "a checkpoint that this trainer wrote", str(checkpoint), fix)
        )
    if not os.path.lexists(run_dir):
        part = part_beside(run_dir)
        # A link stays one, and is then refused by name: a stranger's would fetch what it leads to.
        shutil.copytree(
            checkpoint,
            part / checkpoint.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("run.json"),
        )
        shutil.copy(record, part)
        part.rename(run_dir)
