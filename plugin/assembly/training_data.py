"""Training data of a run: stored documents or a stream, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from ..batch import Batch
from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..data.packing import Layout
from ..data.stream import StreamState
from ..run.outcome import Truncation
from ..training.memory import documents_of
from ..training.step import Step, StepRules
from .clock import Clock, make_clock, step_maker
from .corpus import Examples, Log, Prepared, prepare_corpus
from .heaviest import heaviest_batch
from .stream import (
    EVAL_ROWS,
    StreamedSteps,
    add_up,
    first_step,
    full_report,
    pack_tokens,
    prepare_stream,
    start_streaming,
    tokens_of_steps,
)


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

    always_packed: ClassVar[bool]
    rows_read: ClassVar[int | None]  # before the first step; None reads all
    indexed: ClassVar[bool]  # a step's documents can be looked up in Data.train
    note: ClassVar[str]  # for the report of `check`

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
        self, documents: int, evaluated: int, ranks: int, *, done: int = 0, seen: int = 0
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


def training_data(params: Params) -> TrainingData:
    """Return how this run reads its data. The only place that knows of both ways."""
    return Streamed(params) if params.streaming else Stored(params)


def read_rows_alone(params: Params, log: Log) -> None:
    """Read the rows that a run would prepare, without a tokenizer. Raises JobError (exit 3)."""
    rows = Examples(params, log, between_rows=lambda: None)("train")
    for _ in islice(rows, training_data(params).rows_read):
        pass


@dataclass(frozen=True)
class StoredSteps:
    """Steps out of stored documents: functions of their number."""

    make: Callable[[int], Step]
    clock: Clock
    documents: int

    def __call__(self, step: int) -> Step:
        return self.make(step)

    def position(self, finished: int) -> tuple[int, int]:
        return divmod(self.clock.seen(finished), self.documents)

    def state(self, finished: int) -> bytes:
        return b""

    def restore(self, finished: int, state: Path) -> None:
        pass

    def count_together(
        self, accelerator: Accelerator, make_step: Callable[[int], Step]
    ) -> Callable[[int], Step]:
        return make_step

    def report(self, accelerator: Accelerator, finished: int) -> Truncation | None:
        return None


@dataclass(frozen=True)
class Stored:
    """Data that is tokenised before the first step."""

    params: Params
    always_packed: ClassVar[bool] = False
    rows_read: ClassVar[int | None] = None
    indexed: ClassVar[bool] = True
    note: ClassVar[str] = ""

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,
    ) -> Prepared:
        return prepare_corpus(self.params, log, between_rows=between_rows, moment=moment)

    def clock(
        self, documents: int, evaluated: int, ranks: int, *, done: int = 0, seen: int = 0
    ) -> Clock:
        return make_clock(self.params, documents, evaluated, ranks, done=done, seen=seen)

    def steps(
        self, data: Data, layout: Layout, rank: int, ranks: int, log: Log, *, even: bool
    ) -> Steps:
        make = self._maker(data, layout, rank, ranks, even=even)
        return StoredSteps(make, data.clock, len(data.train))

    def _maker(
        self, data: Data, layout: Layout, rank: int, ranks: int, *, even: bool = False
    ) -> Callable[[int], Step]:
        return step_maker(
            self.params, data.train, data.rules, data.clock, layout, rank, ranks, even=even
        )

    def first_step(self, data: Data, layout: Layout, ranks: int) -> Step:
        return self._maker(data, layout, 0, 1)(0)

    def heaviest(self, data: Data, layout: Layout, ranks: int) -> tuple[Batch, bool]:
        first_rank = self._maker(data, layout, 0, ranks)
        return heaviest_batch(
            self.params, data.train, data.rules, data.clock, layout, ranks, first_rank
        )

    def extent(self, data: Data, first: Step) -> dict[str, Any]:
        steps, size = data.clock.cadence.steps, data.clock.step_size
        return {
            "documents_per_step": size,
            "tokens": steps * round(float(data.train.lengths.mean()) * size),
            "passes": round(size * steps / len(data.train), 2),
        }

    def smaller_batches(self) -> list[str]:
        size, tokens = self.params.batch_size, self.params.tokens_per_batch
        rows = _halved_batch(self.params)
        if isinstance(tokens, int):
            if tokens >= 2 * self.params.max_length:
                rows.append(f"tokens_per_batch {tokens // 2}")
        elif size > 1:
            longest = self.params.max_length
            rows.append(f"tokens_per_batch {max(longest, size * longest // 4)}")
        return rows

    def step_size(self, clock: Clock, ranks: int) -> str:
        return f"{clock.step_size} documents"


class StreamSteps:
    """Steps out of one rank's stream: built once and in order."""

    def __init__(self, built: StreamedSteps, longest: int):
        self._built, self._longest = built, longest

    def __call__(self, step: int) -> Step:
        return self._built(step)

    def position(self, finished: int) -> tuple[int, int]:
        state = self._built.state_after(finished)
        return state.pass_, state.row

    def state(self, finished: int) -> bytes:
        return self._built.state_after(finished).as_bytes()

    def restore(self, finished: int, state: Path) -> None:
        self._built.restore(finished, StreamState.load(state))

    def count_together(
        self, accelerator: Accelerator, make_step: Callable[[int], Step]
    ) -> Callable[[int], Step]:
        return add_up(accelerator, make_step, self._longest)

    def report(self, accelerator: Accelerator, finished: int) -> Truncation | None:
        return full_report(accelerator, self._built.state_after(finished).report)


@dataclass(frozen=True)
class Streamed:
    """Data that is read while it is trained on."""

    params: Params
    always_packed: ClassVar[bool] = True
    rows_read: ClassVar[int | None] = EVAL_ROWS
    indexed: ClassVar[bool] = False
    note: ClassVar[str] = (
        "streaming: the data reported is what a run begins with; the rest is read while it trains"
    )

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,
    ) -> Prepared:
        return prepare_stream(self.params, log, between_rows=between_rows, moment=moment)

    def clock(
        self, documents: int, evaluated: int, ranks: int, *, done: int = 0, seen: int = 0
    ) -> Clock:
        tokens = tokens_of_steps(self.params, ranks)
        return make_clock(self.params, documents, evaluated, ranks, tokens=tokens)

    def steps(
        self, data: Data, layout: Layout, rank: int, ranks: int, log: Log, *, even: bool
    ) -> Steps:
        evaluated = len(data.evaluation) > 0
        built = start_streaming(
            self.params, data.chat, data.rules, log, evaluated=evaluated, rank=rank, ranks=ranks
        )
        return StreamSteps(built, self.params.max_length)

    def first_step(self, data: Data, layout: Layout, ranks: int) -> Step:
        evaluated = len(data.evaluation) > 0
        return first_step(self.params, data.chat, data.rules, evaluated=evaluated, ranks=ranks)

    def heaviest(self, data: Data, layout: Layout, ranks: int) -> tuple[Batch, bool]:
        """Return a stand-in: steps are built once and in order, each pack has one size."""
        batch = documents_of(pack_tokens(self.params), self.params.max_length)
        return batch, self.params.gradient_accumulation_steps > 1

    def extent(self, data: Data, first: Step) -> dict[str, Any]:
        steps, tokens = data.clock.cadence.steps, data.clock.tokens
        return {
            "documents_per_step": len(first.lengths),
            "tokens": tokens.after(steps) if tokens else steps * first.tokens,
            "passes": None,
        }

    def smaller_batches(self) -> list[str]:
        tokens, packs = self.params.tokens_per_batch, self.params.gradient_accumulation_steps
        if not isinstance(tokens, int):
            return _halved_batch(self.params)
        if tokens % 2 or tokens < 2 * self.params.max_length:
            return []
        return [f"tokens_per_batch {tokens // 2} with gradient_accumulation_steps {2 * packs}"]

    def step_size(self, clock: Clock, ranks: int) -> str:
        packs = self.params.gradient_accumulation_steps * ranks
        grows = "up to " if clock.tokens and clock.tokens.ends else ""
        return f"{grows}{packs * pack_tokens(self.params)} tokens"


def _halved_batch(params: Params) -> list[str]:
    size, steps = params.batch_size, params.gradient_accumulation_steps
    if size == 1:
        return []
    half = next(part for part in range(size // 2, 0, -1) if size % part == 0)
    return [f"batch_size {half} with gradient_accumulation_steps {steps * size // half}"]
