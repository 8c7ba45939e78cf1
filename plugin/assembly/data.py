"""Data of a run, and the protocol of the ways from rows to steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from ..base.errors import JobError, Problem
from ..batch import Batch
from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..data.packing import Layout
from ..run.outcome import Truncation
from ..training.step import Step, StepRules
from .clock import Clock
from .corpus import Log, Prepared


@dataclass(frozen=True, kw_only=True)
class Data:
    """Tokenised documents and the rules that turn them into steps, the same on every rank."""

    train: Documents  # of a stream, only those that it begins with
    evaluation: Documents
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    rules: StepRules
    clock: Clock


class Steps(Protocol):
    """One rank's share of a run's steps."""

    def __call__(self, step: int) -> Step:
        """Build step `step`, counted from 0."""
        ...

    def position(self, finished: int) -> tuple[int, int]:
        """Return (pass, documents of it seen; rows of a stream) after `finished` steps."""
        ...

    def state(self, finished: int) -> bytes:
        """Return what a checkpoint must keep of this rank; empty if nothing."""
        ...

    def restore(self, finished: int, state: Path) -> None:
        """Continue after `finished` steps. Raises JobError (exit 2) for another rank's state."""
        ...

    def count_together(
        self, accelerator: Accelerator, make_step: Callable[[int], Step]
    ) -> Callable[[int], Step]:
        """Return `make_step` with the counts of all ranks. Collective."""
        ...

    def report(self, accelerator: Accelerator, finished: int) -> Truncation | None:
        """Return {rows, documents, truncated, dropped} of what was read, None if known before the
        first step. Collective.
        """
        ...


class TrainingData(Protocol):
    """The way from rows to steps."""

    @property
    def always_packed(self) -> bool:
        """Return True if steps are packs, whatever `packing` says."""
        ...

    @property
    def rows_read(self) -> int | None:
        """Return the rows read before the first step; None for all."""
        ...

    @property
    def indexed(self) -> bool:
        """Return True if a step's documents can be looked up in Data.train."""
        ...

    @property
    def note(self) -> str:
        """Return a line for the report of `check`."""
        ...

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,
    ) -> Prepared:
        """Tokenise what is needed before the first step.

        `moment`: what a chat template takes for now. Raises JobError (exit 2, 3 or 4).
        """
        ...

    def clock(
        self,
        train: Documents,
        chat: ChatFormat,
        evaluated: int,
        ranks: int,
        *,
        done: int = 0,
        seen: int = 0,
    ) -> Clock:
        """Return the run's clock; a resumed run has made `done` steps over `seen` documents."""
        ...

    def steps(
        self, data: Data, layout: Layout, rank: int, ranks: int, log: Log, *, even: bool
    ) -> Steps:
        """Return the steps of one rank; `even` as in build_step."""
        ...

    def first_step(self, data: Data, layout: Layout, ranks: int) -> Step:
        """Return the first step of all ranks together, for a dry run."""
        ...

    def heaviest(self, data: Data, layout: Layout, ranks: int) -> tuple[Batch, bool]:
        """Return (the run's largest micro-batch, whether a step has several)."""
        ...

    def extent(self, data: Data, first: Step) -> dict[str, Any]:
        """Return {documents_per_step, tokens, passes} of the run, given its first step."""
        ...

    def smaller_batches(self) -> list[str]:
        """Return settings that cut a step into more, smaller micro-batches."""
        ...

    def step_size(self, clock: Clock, ranks: int) -> str:
        """Return the size of a step in words."""
        ...


def other_steps(now: str, before: str) -> JobError:
    """Return the error (exit 2) of a run whose steps were of another kind before."""
    fix = (
        "Set packing and attn_implementation as they were, or start a new run from the checkpoint."
    )
    expected, got = f"a checkpoint of steps of {now}", f"one of steps of {before}"
    return JobError(Problem("resume", expected, got, fix))


def halved_batch(params: Params) -> list[str]:
    """Return the setting with half as large micro-batches, if there is one."""
    size, steps = params.batch_size, params.gradient_accumulation_steps
    if size == 1:
        return []
    half = next(part for part in range(size // 2, 0, -1) if size % part == 0)
    return [f"batch_size {half} with gradient_accumulation_steps {steps * size // half}"]
