"""Host of today's Transformer Lab: a task runs `python main.py --task` with the host's SDK `lab`.

One thread makes every call of the SDK, in order: some copy gigabytes, and a stop must be answered
within 3 s.
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
from ..base.files import is_plain, whole_folder, write_whole
from ..config.methods import pipeline_tag
from ..parent.launch import LaunchPlan
from ..parent.wandb import FACTS
from ..run.events import CheckpointEvent, Event, MetricsEvent, ProgressEvent, SampleEvent, curves
from ..run.folder import RunFolder
from ..run.lines import metrics_line, outcome_line, sample_line
from ..run.outcome import Outcome
from ..run.state import STATE
from .pulse import Pulse

EVERY_S = 1.0
# The host sends SIGTERM to all processes and SIGKILL 3 s later: the workers have this long to save,
# the last report has the rest.
STOP_GRACE_S = 1.5
LAST_WORDS_S = 0.8
# in addition to the model, the checkpoints and the metrics
ARTIFACTS = ("run.json", "log.txt", "samples.jsonl", "tb")
ADAPTER = "adapter"
_NAME = re.compile(r"checkpoint-\d+")


class Caller:
    """A thread that makes calls one after the other."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._calls = say, queue.SimpleQueue[Callable[[], object] | None]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def call(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def finish(self, timeout_s: float | None = None) -> None:
        """Wait for the calls so far."""
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while call := self._calls.get():
            try:
                call()
            except (OSError, ValueError, RuntimeError) as error:  # the run continues unreported
                self._say(f"the host refused a report: {error}")


class TaskHost:
    stop_grace_s = STOP_GRACE_S

    def __init__(self, lab: Any):
        self._lab = lab
        self._pulse = Pulse(self.line)
        self._caller = Caller(self.line)
        self._percent, self._sent = 0, -math.inf
        self._told = 0  # the last percentage sent to the host
        self._rows: dict[int, dict[str, float]] = {}  # step -> figures not yet sent to the host
        self._step: int = 0  # the newest finished step, and its loss
        self._loss: float | None = None
        self._latest: dict[str, float] = {}

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
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
            shown = curves(event.metrics).items()  # the host draws whatever it is sent
            figures = {name: value for name, value in shown if math.isfinite(value)}
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
        """Report the cause on the job's page, and as the last line of its log."""
        self._pulse.stop()
        details = "\n".join(problem.line for problem in problems)
        self._caller.call(lambda: self._lab.error(message=details))
        self._caller.finish()
        for problem in problems:
            self.line(problem.line)

    def _send(self) -> None:
        """Send every new evaluation and the newest other figures: the host wants a report a second.

        Each row holds the training loss, since the host's page shows only the newest row.
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
        """Copy a checkpoint to the host, and remove those that the run has removed.

        The host then keeps `save_total_limit` checkpoints, like the run.
        """
        run = RunFolder(path.parent)
        try:
            if path.is_dir():  # a slow copy of the previous one may have outlived it
                saved = Path(self._lab.save_checkpoint(str(path), path.name))
                if saved.is_dir():  # a folder of this machine, not a bucket
                    write_whole(
                        saved / "run.json", (run / "run.json").read_text(encoding="utf-8")
                    )  # for the job that resumes
        finally:
            kept = {checkpoint.name for checkpoint in run.checkpoints()}
            copies = [Path(name) for name in self._lab.get_checkpoint_paths()]
            for copy in copies:
                if copy.name not in kept and is_checkpoint(copy):
                    shutil.rmtree(copy)
            self._lab.set_job_data_field(
                "checkpoints", [str(copy) for copy in copies if copy.name in kept]
            )

    def _save_artifacts(self, folder: RunFolder, outcome: Outcome) -> None:
        # an adapter of an earlier end is not this one's
        made = (ADAPTER,) if outcome.outcome == "done" else ()
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
    """Return the host's SDK, connected to the job that the host started."""
    from lab import lab  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # the host has it, we do not

    lab.init()
    return lab


def task_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's parameters for `parse`.

    A launch through the API may send the schema of task.yaml itself.
    """
    unwrapped = {
        name: value.get("default") if isinstance(value, dict) else value
        for name, value in config.items()
    }
    return {name: value for name, value in unwrapped.items() if name != "experiment_name"}


def chosen_checkpoint(lab: Any) -> Path | None:
    """Return the checkpoint of another job that the user chose to resume from.

    Raises JobError (exit 2) if it no longer exists.
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
    """Recognise a checkpoint of this program by its name and its digests; never a link."""
    return (
        bool(_NAME.fullmatch(folder.name))
        and not folder.is_symlink()
        and is_plain(folder / DIGESTS)
    )


def copy_checkpoint(checkpoint: Path, run_dir: Path) -> None:
    """Copy another job's checkpoint into a new run `run_dir`, to resume it there.

    Raises JobError (exit 2) if this program did not write it.
    """
    record = checkpoint / "run.json"
    if not (_NAME.fullmatch(checkpoint.name) and is_plain(checkpoint / STATE) and is_plain(record)):
        fix = "Choose one of the job's checkpoint-N."
        raise JobError(
            Problem("resume", "a checkpoint that this trainer wrote", str(checkpoint), fix)
        )
    if not os.path.lexists(run_dir):
        with whole_folder(run_dir) as part:
            # A link stays one, and is then refused by name: following a stranger's would copy what
            # it leads to.
            shutil.copytree(
                checkpoint,
                part / checkpoint.name,
                symlinks=True,
                ignore=shutil.ignore_patterns("run.json"),
            )
            shutil.copy(record, part)
