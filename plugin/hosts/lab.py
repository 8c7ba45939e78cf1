"""Today's Transformer Lab: a task that runs `python main.py --task` beside the SDK `lab`, which the host installs.

Every call of the SDK happens on one thread of its own, in order: some copy gigabytes, and a stop must be answered within 3 s.
"""

from __future__ import annotations

import json
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..job import Outcome, Problem
from ..launch import LaunchPlan
from ..run_folder import RunFolder
from ..summary import metrics_line, outcome_line
from ..wandb_relay import FACTS

EVERY_S = 1.0
# The host sends SIGTERM to the whole tree, SIGKILL 3 s later: the workers have this long to save, the rest is for the last words.
STOP_GRACE_S = 1.5
LAST_WORDS_S = 0.8


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
            except (OSError, ValueError, RuntimeError) as error:  # the run goes on without the host's page of it
                self._say(f"the host did not take a report: {error}")


class LabHost:
    stop_grace_s = STOP_GRACE_S

    def __init__(self, lab: Any):
        self._lab = lab
        self._caller = Caller(self.line)
        self._percent, self._sent = 0, -math.inf
        self._rows: list[tuple[int, dict[str, float]]] = []
        self._latest: dict[str, float] = {}

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        where = f"GPU {', '.join(plan.gpus)}" if plan.gpus else "CPU"
        self.line(f"run folder: {folder.path}")
        self.line(f"devices: {where}, {len(plan.ranks)} process{'es' if len(plan.ranks) > 1 else ''}")
        # Beside the checkpoints, so that another job can go on from one.
        self._caller.call(lambda: self._lab.save_checkpoint(str(folder / "run.json"), "run.json"))

    def line(self, text: str) -> None:
        print(text, flush=True)

    def event(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "progress":
            self._percent = min(99, int(event["percent"]))
        elif event["type"] == "metrics":
            self.line(metrics_line(event["step"], event["metrics"]))
            figures: dict[str, float] = {
                name: value for name, value in event["metrics"].items() if isinstance(value, int | float)
            }
            self._rows.append((event["step"], figures))
            self._latest |= figures
        elif event["type"] == "checkpoint":
            path = Path(event["path"])
            self._caller.call(lambda: self._lab.save_checkpoint(str(path), path.name))

    def stop_wanted(self) -> bool:
        if time.monotonic() - self._sent >= EVERY_S:
            self._send()
        return False  # a stop comes as a signal here

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        self._send()
        if outcome.error:
            self.failed([outcome.error])
            return
        line = outcome_line(outcome)
        if (folder / FACTS).exists() and (url := json.loads((folder / FACTS).read_text(encoding="utf-8"))["url"]):
            self._caller.call(lambda: self._lab.capture_wandb_url(url))
        if outcome.outcome == "done" and (folder / "fused").is_dir():
            self._caller.call(lambda: self._save_model(folder))
        if outcome.code:  # the host has marked the job as stopped itself, and waits no longer
            self._caller.call(lambda: self._lab.set_job_data_field("completion_details", line))
        else:
            score = {"eval/loss": self._latest["eval/loss"]} if "eval/loss" in self._latest else {}
            self._caller.call(lambda: self._lab.finish(message=line, score=score))
        self._caller.finish(LAST_WORDS_S if outcome.code else None)
        self.line(line)

    def failed(self, problems: Sequence[Problem]) -> None:
        """The cause, where the job's page shows it and last in its log."""
        details = "\n".join(problem.line for problem in problems)
        self._caller.call(lambda: self._lab.error(message=details))
        self._caller.finish()
        self.line(details)

    def _send(self) -> None:
        """Progress, with every evaluation and the newest other figures: the host asks for one report a second."""
        self._sent, rows, self._rows = time.monotonic(), self._rows, []
        percent = self._percent
        for step, figures in [row for row in rows if "eval/loss" in row[1] or row is rows[-1]]:
            self._caller.call(lambda step=step, figures=figures: self._lab.update_progress(percent, metrics=figures, step=step))
        if not rows:
            self._caller.call(lambda: self._lab.update_progress(percent))

    def _save_model(self, folder: RunFolder) -> None:
        params = folder.read_run()["params"]
        architecture = json.loads((folder / "fused" / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        tag = "fill-mask" if params["training_method"] == "bert" else "text-generation"
        self._lab.save_model(str(folder / "fused"), params["adaptor_name"], architecture=architecture, pipeline_tag=tag)


def started_sdk() -> Any:
    """The host's SDK, with the job that the host started us for."""
    from lab import lab  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # the host has it, we do not

    lab.init()
    return lab


def task_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's parameters as `parse` takes them. Launched through the API they may come as the schema of task.yaml itself."""
    unwrapped = {name: value.get("default") if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in unwrapped.items() if name != "experiment_name"}


def go_on_here(checkpoint: Path, run_dir: Path) -> None:
    """Make `run_dir` a run that stands at the checkpoint of another job, which the host copied beside its run.json."""
    if not run_dir.exists():
        part = run_dir.with_name(f".{run_dir.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(checkpoint, part / checkpoint.name)
        shutil.copy(checkpoint.parent / "run.json", part)
        part.rename(run_dir)
