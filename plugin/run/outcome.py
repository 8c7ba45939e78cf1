"""Outcome of a run: what the worker reports at its end, and the `result` of run.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..base.errors import Problem
from .record import Number, Record, Text

Ending = Literal["done", "stopped", "failed"]


class Truncation(Record):
    """Rows of one split and what became of them."""

    rows: int
    documents: int
    truncated: int
    dropped: dict[Text, int]  # reason -> rows


class Throughput(Record):
    """Speed of the steps alone, over the full run."""

    tokens_per_s: Number
    supervised_tokens_per_s: Number
    training_seconds: Number
    flops_per_s: Number | None = None  # not in older files
    mfu: Number | None = None  # None where the peak was not measured


class MemoryEstimate(Record):
    """Bytes on one device as estimated before the run."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    heap: int | None = None  # not in older files
    peak: int


class MemoryUse(Record):
    """Bytes that rank 0 held; `rest` of the measured peak is activations and logits."""

    weights: int
    gradients: int
    optimizer: int
    rest: int
    peak: int
    estimate: MemoryEstimate | None = None


class EarlyStop(Record):
    """End of a complete run before its last step: patience was exhausted."""

    evaluations: int  # in a row without a new best
    planned_steps: int


class BestCheckpoint(Record):
    """The checkpoint with the lowest evaluation loss."""

    path: Text
    eval_loss: Number


class PublishedWeights(Record):
    """Weights that were published."""

    weights: Literal["best", "average", "last"]
    checkpoints: list[Text]  # the best first
    eval_loss: Number | None = None  # None without an evaluation, as the next
    eval_loss_last: Number | None = None  # of the last step's weights


class FuseResult(Record):
    """The fused model, as a fresh process reloaded it."""

    path: Text
    fuse_base: str
    max_logit_difference: Number
    differences: dict[str, Number]  # base -> largest difference from the trained model's logits
    chat_template_as_trained: bool | None = None  # not in older files


class Result(Record):
    """Result of a run. The worker reports it; the parent adds `code` and `error`.

    A run that stopped before its first step has `outcome` and `steps` alone.
    """

    outcome: Ending
    code: int | None = None
    error: Problem | None = None
    steps: int | None = None
    seconds: Number | None = None  # with loading, evaluation and saving
    loss: Number | None = None
    eval_loss: Number | None = None
    eval_loss_first: Number | None = None
    truncation: dict[str, Truncation] | None = None  # by split
    throughput: Throughput | None = None
    memory: MemoryUse | None = None
    early_stop: EarlyStop | None = None
    best_checkpoint: BestCheckpoint | None = None
    skipped_steps: Number | None = None
    cut_answer_tokens: Number | None = None
    fill_tokens: Number | None = None
    effective: dict[str, Any] | None = None  # parameters that trained otherwise than `params` says
    fuse: FuseResult | None = None
    published: PublishedWeights | None = None


@dataclass(frozen=True)
class Outcome:
    """End of a run.

    `done` means that the worker exited 0 *and* wrote its final event; nothing else counts as
    success.
    """

    outcome: Ending
    code: int
    error: Problem | None = None
    result: Result | None = None  # what the worker's final event held

    @property
    def record(self) -> Result:
        """Return the `result` object of run.json."""
        reported = self.result or Result(outcome=self.outcome)
        return reported.model_copy(
            update={"outcome": self.outcome, "code": int(self.code), "error": self.error}
        )
