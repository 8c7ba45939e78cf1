"""Host of a run started from a shell: a terminal or a log file shows the run folder's events."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..base.errors import json_line, one_line
from ..parent.launch import LaunchPlan
from ..parent.stages import StagesOutcome
from ..run.events import CheckpointEvent, Event, MetricsEvent, ProgressEvent, SampleEvent
from ..run.folder import RunFolder
from ..run.lines import metrics_line, outcome_line, sample_line
from ..run.outcome import Outcome
from .pulse import Pulse

QUIET_LINES = 20  # metric lines of a run without a terminal


def _quoted(path: object) -> str:
    """Quote a path for a shell: users copy these lines."""
    return one_line(shlex.quote(str(path)))


def print_stages(ended: StagesOutcome, config: str, *, as_json: bool) -> None:
    """Print the end of a run of stages on stdout; as JSON, one object with all stages."""
    run_dir, outcome = ended.run_dir, ended.outcome
    if as_json:
        result = {"run_dir": str(run_dir), **outcome.record.content()}
        print(json_line({**result, **ended.record.content()}))
        return
    print(f"run folder   {one_line(str(run_dir))}")
    for stage in ended.record.stages:
        print(f"stage {stage.number:<6} {one_line(stage.name)}: {stage.state}")
    program = f"python {_quoted(os.path.relpath(sys.argv[0]))}"
    if outcome.outcome == "done" and (run_dir / "fused").is_dir():
        print(f"chat         {program} chat {_quoted(run_dir)}")
    elif outcome.outcome != "done":
        resume = f"train --config {_quoted(config)} --resume true --run_dir {_quoted(run_dir)}"
        print(f"resume       {program} {resume}")
    print(f"curves       tensorboard --logdir {_quoted(run_dir)}")


class ShellHost:
    """A host that prints on stderr, and the result on stdout, as JSON if requested.

    `of_stage`: one of several, whose result is not printed; see print_stages.
    """

    stop_grace_s = math.inf

    def __init__(self, *, as_json: bool = False, of_stage: bool = False):
        self._as_json, self._of_stage = as_json, of_stage
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line = 0
        self._pulse = Pulse(self.line)

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        self.line(f"stop with Ctrl-C or: touch {_quoted(folder / 'STOP')}")
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description:>6}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=False)
            self._task = self._bar.add_task("load", total=None, text="")
            self._bar.start()
        else:
            self._pulse.start()

    def line(self, text: str) -> None:
        with self._pulse.speaking():
            (self._bar.console if self._bar else self._console).print(one_line(text), markup=False)

    def event(self, event: Event) -> None:
        self._pulse.event(event)
        if isinstance(event, ProgressEvent):
            self._progress(event)
        elif isinstance(event, MetricsEvent):
            self._metrics(event.step, event.metrics)
        elif isinstance(event, CheckpointEvent):
            self.line(f"checkpoint: {event.path}")
        elif isinstance(event, SampleEvent):
            self.line(sample_line(event))

    def stop_wanted(self) -> bool:
        return False

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        self._pulse.stop()
        if self._bar:
            self._bar.stop()
            self._bar = None
        self.line(outcome_line(outcome, folder))
        if self._of_stage:
            return
        if self._as_json:
            print(
                json_line(
                    {
                        "run_dir": str(folder.path) if folder.path.is_dir() else None,
                        **outcome.record.content(),
                    }
                )
            )
            return
        if not folder.path.is_dir():
            return
        print(f"run folder   {one_line(str(folder.path))}")
        program = f"python {_quoted(os.path.relpath(sys.argv[0]))}"
        if outcome.outcome == "stopped" and folder.checkpoints():
            where = _quoted(folder.path)
            print(
                f"resume       {program} train --config {_quoted(folder / 'run.json')} --resume true --run_dir {where}"
            )
        # a fused model of an earlier end is not this one's
        if outcome.outcome == "done" and (folder / "fused").is_dir():
            print(f"fused model  {one_line(str(folder / 'fused'))}")
            print(f"chat         {program} chat {_quoted(folder.path)}")
        print(f"curves       tensorboard --logdir {_quoted(folder / 'tb')}")

    def _progress(self, event: ProgressEvent) -> None:
        if not (self._bar and self._task is not None):
            return
        words = [f"{event.step}/{event.steps}"]
        if event.loss is not None:
            words.append(f"loss {event.loss:.3f}")
        if event.tokens_per_s:
            words.append(
                f"{event.tokens_per_s:,.0f} tok/s ({event.supervised_tokens_per_s:,.0f} learned)"
            )
        total = event.steps or None
        self._bar.update(
            self._task,
            description=event.phase,
            total=total,
            completed=event.step,
            text="  ".join(words),
        )

    def _metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if "eval/loss" in metrics:
            self.line(metrics_line(step, metrics))
        elif self._bar is None and step >= self._next_line:
            self._next_line = step + max(1, step // QUIET_LINES)
            self.line(metrics_line(step, metrics))
