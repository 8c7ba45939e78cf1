"""Host of the plugin-era Transformer Lab (app up to v0.30.1).

It shows a job's progress, stop button, curves, checkpoints, adapters and models. Only this process
writes, once a second: the host's job file has no lock. The workers never wait for it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from werkzeug.utils import secure_filename

from ...base.errors import Code, JobError, Problem, one_line
from ...base.files import write_whole
from ...config.methods import METHODS, pipeline_tag
from ...parent.launch import LaunchPlan
from ...run.events import CheckpointEvent, Event, MetricsEvent, ProgressEvent, SampleEvent
from ...run.facts import read_facts
from ...run.folder import RunFolder, to_json
from ...run.lines import metrics_line, outcome_line, sample_line
from ...run.outcome import Outcome
from ..pulse import Pulse
from .job import WORST, TlabJob, viewer_dir
from .publish import free_name, shelve, show_link
from .sdk import TlabSdk

EVERY_S = 1.0
ESTIMATE_EVERY_S = 10.0  # of the remaining time: one more write of the job's file


def local_time() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")


class TlabHost:
    stop_grace_s = math.inf

    def __init__(self, job: TlabJob):
        self.job = job
        self._pulse = Pulse(self.line)
        self._sdk = TlabSdk(self.line)
        self._pending: dict[str, Any] = {"start_time": local_time(), "template_name": job.template}
        self._percent, self._stop, self._asked = 0, False, -math.inf
        self._board: RunFolder | None = None  # shown once there is a curve
        self._estimated = -math.inf
        self._report_metrics({})  # a run that dies with this process must not win a sweep

    # --- calls of train_job

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        self._board = folder
        self._pulse.start()

    def line(self, text: str) -> None:
        with self._pulse.speaking():
            print(one_line(text), flush=True)  # the host streams this from a file

    def event(self, event: Event) -> None:
        self._pulse.event(event)
        if isinstance(event, ProgressEvent):
            self._percent = min(99, int(event.percent))  # 100 means a run that has ended
            self._estimate(event.eta_seconds)
            if event.phase != "load":
                self._show_board()
        elif isinstance(event, MetricsEvent):
            self.line(metrics_line(event.step, event.metrics))
        elif isinstance(event, SampleEvent):
            self.line(sample_line(event))
        elif isinstance(event, CheckpointEvent):
            self._show_checkpoints(Path(event.path).parent)

    def stop_wanted(self) -> bool:
        if time.monotonic() - self._asked >= EVERY_S:
            self._beat()
            self._asked = time.monotonic()
        return self._stop

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        if outcome.error:
            self.failed([outcome.error])
            return
        metrics = (
            json.loads((folder / "metrics.json").read_text())
            if (folder / "metrics.json").exists()
            else {}
        )
        made: dict[str, Any] = {}
        if outcome.outcome == "done":
            made = self._publish(folder)
        if outcome.outcome == "done" or not self.job.sweep_run:
            self._report_metrics(metrics)
        self._show_checkpoints(folder.path)
        line = outcome_line(outcome, folder)
        if outcome.outcome == "stopped" and folder.checkpoints():
            line += f". To resume, start a job with this line in Advanced: resume: {folder.path}"
        self._end("success", line, made)

    # --- endings

    def failed(self, problems: Sequence[Problem]) -> None:
        """Report the cause on the host's job page, and as the last line of the log.

        It is called before, during or after a run.
        """
        self._report_metrics({})
        details = "\n".join(problem.line for problem in problems)
        self._end("failed", details, {})

    def _end(self, status: str, details: str, made: Mapping[str, Any]) -> None:
        """Report the end of the job.

        The host sets the job's status itself, whatever happened; completion_status is reliable.
        STOPPED comes last: it frees the host's queue.
        """
        self._pulse.stop()
        self._sdk.put({"completion_details": details, **self._pending, **made})
        self._sdk.put({"completion_status": status, "end_time": local_time()})
        for line in details.split("\n"):
            self.line(line)
        if status == "success":
            self._sdk.end(self._percent if self._stop else 100)

    def _report_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`, by which the host ranks the runs of a sweep: `eval/loss`.

        Without figures it holds one that cannot win.
        """
        shown = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if not shown or (self.job.sweep_run and "eval/loss" not in shown):
            shown["eval/loss"] = WORST
        self.job.output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(self.job.output_dir / "metrics.json", to_json(shown) + "\n")

    def _estimate(self, seconds: float | None) -> None:
        if seconds is not None and time.monotonic() - self._estimated >= ESTIMATE_EVERY_S:
            self._pending["estimated_time_remaining"] = round(seconds)
            self._estimated = time.monotonic()

    def _beat(self) -> None:
        if self._pending:
            self._sdk.put(self._pending)
            self._pending = {}
        if not self._stop:
            self._stop = self._sdk.beat(self._percent, in_sweep=bool(self.job.sweep_run))

    # --- results in the host

    def _show_board(self) -> None:
        """Link the run's TensorBoard events to where the SDK and the host's viewer expect them."""
        folder, self._board = self._board, None
        if folder is None:
            return
        name = f"job_{self.job.job_id}_{secure_filename(self.job.template)}".rstrip("_")
        looked_at = viewer_dir(self.job, secure_filename(self.job.template))
        (folder / "tb").mkdir(exist_ok=True)
        for parent in dict.fromkeys([self.job.output_dir, looked_at]):
            show_link(parent / name, folder / "tb", self.line)
        self._pending["tensorboard_output_dir"] = str(looked_at)

    def _show_checkpoints(self, run_dir: Path) -> None:
        """Link every checkpoint that still exists into the job's folder."""
        shelf = self.job.folder / "checkpoints"
        checkpoints = RunFolder(run_dir).checkpoints()
        for path in checkpoints:
            show_link(shelf / path.name, path, self.line)
        if shelf.is_dir() and not shelf.is_symlink():
            for link in shelf.iterdir():
                if link.is_symlink() and link.readlink().parent == run_dir and not link.exists():
                    link.unlink()
        if checkpoints:
            self._pending["checkpoints"] = [str(shelf / path.name) for path in checkpoints]

    def _publish(self, folder: RunFolder) -> dict[str, Any]:
        """Publish the adapter and the fused model where the host lists them.

        Returns job data on them. A sweep's runs leave theirs where they are.
        """
        if self.job.sweep_run:
            return {}
        made: dict[str, Any] = {}
        try:
            if (folder / "adapter").is_dir():
                name = folder.read_run().params["adaptor_name"]
                target = free_name(self.job.adaptors / name, self.job.job_id, self.line)
                shelve(folder / "adapter", target)
                made["adaptor_dir"] = str(target)
                self.line(f"adapter: {target}")
            if (folder / "fused").is_dir():
                made["fused_model_name"] = self._register(folder)
        except OSError as error:
            got = f"{error.filename}: {error.strerror}"
            fix = f"The results are complete in {folder.path}."
            raise JobError(
                Problem("adaptor_output_dir", "room for the results", got, fix, Code.DISK)
            ) from error
        return made

    def _register(self, folder: RunFolder) -> str:
        params = folder.read_run().params
        base = secure_filename(Path(params["model_name"] or "scratch").name)
        target = free_name(
            self.job.workspace / "models" / f"{base}_{params['adaptor_name']}",
            self.job.job_id,
            self.line,
        )
        shelve(folder / "fused", target)
        architecture = json.loads((target / "config.json").read_text(encoding="utf-8"))[
            "architectures"
        ][0]
        method, name = params["training_method"], params["model_name"]
        kept = (
            "training_method",
            "noise_schedule",
            *METHODS[method].options,
        )
        facts: dict[str, Any] = {kept_name: params[kept_name] for kept_name in kept}
        facts["loss_norm"] = read_facts(target).loss_norm  # the resolved auto
        shown = Path(name).name if Path(name).is_absolute() else name or "A new model"
        kind = "an autoregressive" if METHODS[method].causal else "a diffusion"
        facts["description"] = f"{shown}, trained as {kind} model."
        tag = pipeline_tag(method)
        self._sdk.register_model(target.name, architecture, facts, tag)
        self.line(f"model: {target.name} ({architecture})")
        return target.name
