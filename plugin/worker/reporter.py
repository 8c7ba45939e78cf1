"""Output of a run: events, metrics, progress and TensorBoard. Only a machine's first rank writes;
other ranks' calls show a sign of life and do nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..base.errors import Problem, one_line
from ..base.files import write_whole
from ..base.redact import redact
from ..config.rules.resume import MAY_CHANGE
from ..run.events import (
    Event,
    FailedEvent,
    LogEvent,
    MetricsEvent,
    ProgressEvent,
    ProgressFile,
    SampleEvent,
    Standing,
    curves,
)
from ..run.folder import JsonLines, RunFolder, to_json
from ..run.heartbeat import Heartbeat
from ..run.lines import counted
from ..run.outcome import Truncation
from .tensorboard import Board

PROGRESS_EVERY_S = 1.0
# TensorBoard compares runs by parameters that affect the result, not by placement or logging.
NOT_COMPARED = MAY_CHANGE - {
    "batch_size",
    "gradient_accumulation_steps",
    "train_steps",
    "train_tokens",
    "num_train_epochs",
}


class Reporter:
    """Writers of one run folder; a run resumed after `first_step` appends."""

    def __init__(
        self, folder: RunFolder, heartbeat: Heartbeat, *, speaks: bool, first_step: int = 0
    ):
        self.speaks = speaks
        self._heartbeat = heartbeat
        if not speaks:
            return
        self._folder = folder
        self._events = JsonLines(folder / "events.jsonl")
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._board = Board(folder / "tb", self.log, first_step)
        latest = folder / "metrics.json"
        self._latest: dict[str, Any] = (
            json.loads(latest.read_text(encoding="utf-8")) if first_step and latest.exists() else {}
        )
        self._standing = Standing(
            phase="load",
            step=first_step,
            steps=0,
            percent=0.0,
            eta_seconds=None,
            loss=None,
            tokens_per_s=None,
        )
        self._wrote = 0.0
        self._training_s = 0.0
        self._first_step: int | None = None

    def event(self, event: Event) -> None:
        if self.speaks:
            self._events.write(event.content())

    def log(self, line: str) -> None:
        """Write a line for people to log.txt (this process's stdout) and as an event."""
        if self.speaks:
            line = one_line(line)
            print(line, flush=True)
            self.event(LogEvent(line=line))

    def data(self, split: str, report: Truncation) -> None:
        """Log the fate of a split's rows: {rows, documents, truncated, dropped}."""
        amount = f"{counted(report.documents, 'document')} of {counted(report.rows, 'row')}"
        self.log(f"data: {split} {amount}, {report.truncated} truncated")
        for reason, count in report.dropped.items():
            self.log(f"data: {split} dropped {count}: {reason}")

    def phase(self, phase: str, steps: int | None = None) -> None:
        self._heartbeat.beat(phase)
        if self.speaks:
            self._stand(phase=phase, **({} if steps is None else {"steps": steps}))
            self._write_progress(force=True)

    def tick(self, step: int, loss: float, seconds: float) -> None:
        """Record a finished step and its seconds, on which the ETA is based."""
        self._heartbeat.beat()
        if not self.speaks:
            return
        steps = self._standing.steps
        self._first_step = step - 1 if self._first_step is None else self._first_step
        self._training_s += seconds
        eta = self._training_s / (step - self._first_step) * (steps - step)
        percent = round(100 * step / steps, 2)
        self._stand(step=step, percent=percent, eta_seconds=round(eta, 1), loss=loss)
        self._write_progress(force=step == steps)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if not self.speaks:
            return
        lasting = {name: value for name, value in values.items() if not name.startswith("time/")}
        self._metrics.write({"step": step, **lasting})
        self._latest |= {"step": step, **lasting}
        write_whole(self._folder / "metrics.json", to_json(self._latest) + "\n", durable=False)
        for name, value in curves(values).items():
            tag = name if "/" in name else f"train/{name}"
            self._board.draw(lambda board, tag=tag, value=value: board.add_scalar(tag, value, step))
        if "tokens_per_s" in values:
            spent = {
                name.removeprefix("time/"): round(value, 4)
                for name, value in values.items()
                if name.startswith("time/")
            }
            self._stand(
                tokens_per_s=round(values["tokens_per_s"], 1),
                seconds_by_work=spent,
                mfu=values.get("mfu"),
                supervised_tokens_per_s=round(values["supervised_tokens_per_s"], 1),
            )
        self.event(MetricsEvent(step=step, metrics=dict(values)))

    def sample(
        self,
        step: int,
        number: int,
        *,
        prompt: str,
        expected: str,
        text: str,
        nfe: int,
        trace: Sequence[Mapping[str, Any]],
    ) -> None:
        """Record a generated answer to watched prompt `number`, with the steps of its canvas."""
        if not self.speaks:
            return
        record = {
            "step": step,
            "prompt": prompt,
            "expected": expected,
            "text": text,
            "nfe": nfe,
            "trace": trace,
        }
        self._samples.write(record)
        shown = "\n".join(
            f"    {_plain(line)}"
            for line in (
                f"prompt:   {prompt}",
                f"expected: {expected}",
                *(each["text"] for each in trace),
                f"answer:   {text}",
            )
        )
        tag = f"samples/{number}"  # not by its text: prompts may begin alike
        self._board.draw(lambda board: board.add_text(tag, redact(shown), step))
        self.event(SampleEvent(step=step, prompt=prompt, expected=expected, text=text))

    def lengths(self, split: str, lengths: Any) -> None:
        if self.speaks and len(lengths):
            self._board.draw(lambda board: board.add_histogram(f"lengths/{split}", lengths, 0))

    def hparams(self, params: dict[str, Any], metrics: dict[str, float | None]) -> None:
        """Write parameters and final metrics for TensorBoard's comparison of runs.

        A metric that was not measured is left out: a made-up 0 would win every comparison.
        """
        if self.speaks:
            shown = {
                name: str(value).lower()
                if isinstance(value, bool)
                else value  # a number otherwise: 0.0000
                for name, value in params.items()
                if name not in NOT_COMPARED
            }
            found = {
                f"hparams/{name}": value for name, value in metrics.items() if value is not None
            }
            self._board.draw(lambda board: board.add_hparams(shown, found, run_name="."))

    def flush(self) -> None:
        """Flush TensorBoard's curves, which its own thread writes; every other file is written
        immediately.
        """
        if self.speaks:
            self._board.flush()

    def close(self) -> None:
        if self.speaks:
            self._board.close()
            for file in (self._events, self._metrics, self._samples):
                file.close()

    def _write_progress(self, *, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._wrote >= PROGRESS_EVERY_S:
            self._wrote = now
            standing = self._standing.content()
            heartbeat = datetime.now(UTC).isoformat(timespec="seconds")
            progress = ProgressFile(**standing, heartbeat=heartbeat).content()
            write_whole(self._folder / "progress.json", to_json(progress) + "\n", durable=False)
            self.event(ProgressEvent(**standing))

    def _stand(self, **changes: Any) -> None:
        self._standing = self._standing.model_copy(update=changes)


def report_failure(folder: RunFolder, error: Problem, rank: int) -> None:
    """Write a failure as an event. Any rank may fail; a line of JSON is one write."""
    events = JsonLines(folder / "events.jsonl")
    events.write(FailedEvent(error=error, rank=rank).content())
    events.close()


def _plain(text: str) -> str:
    """Return a row's text as one line of a Markdown code block, which a browser renders: a line end
    would leave the block.
    """
    return one_line(text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ⏎ "))
