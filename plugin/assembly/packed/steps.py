"""Steps of packs: built once and in order, out of one rank's stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

from accelerate import Accelerator

from ...batch import Batch
from ...config.methods import METHODS
from ...config.params import Params
from ...data.chat import ChatFormat
from ...data.documents import Documents
from ...data.packing import Layout
from ...data.stream import Stream, StreamState
from ...run.outcome import Truncation
from ...training.memory import documents_of
from ...training.step import Step, StepRules, build_streamed_step
from ...training.token_clock import TokenClock
from ..clock import Clock, make_clock
from ..corpus import Log, Prepared
from ..data import Data, Steps, halved_batch, other_steps
from .counts import add_up, full_report
from .packs import clock_of_packs, pack_tokens, tokens_of_steps


class StreamedSteps:
    """`steps(k)` builds step k (from 0), in order; `state_after(k)` is the state of the stream once
    k steps are built.

    Steps are built ahead of their use, so the states of the last few are kept; a state shares its
    documents with the stream.
    """

    def __init__(self, stream: Stream, rules: StepRules, tokens: TokenClock):
        self._stream, self._rules, self._tokens = stream, rules, tokens
        self._next, self._states = 0, {0: stream.state()}

    def restore(self, finished: int, state: StreamState) -> None:
        """Continue after `finished` steps. Raises JobError (exit 2) when the state is another
        rank's.
        """
        self._stream.restore(state)
        self._next, self._states = finished, {finished: state}

    def __call__(self, step: int) -> Step:
        assert step == self._next, f"a stream gives step {self._next} now, not {step}"
        packs = self._stream.next_step(self._tokens.micro_batches(step))
        built = build_streamed_step(packs, self._rules.at(step, self._tokens.after(step)))
        self._next = step + 1
        self._states = {
            number: state for number, state in self._states.items() if number >= step - 1
        }
        self._states[self._next] = self._stream.state()
        return built

    def state_after(self, finished: int) -> StreamState:
        return self._states[finished]


class StreamSteps:
    """Steps out of one rank's stream: built once and in order.

    `reported`: the data was read, and its rows counted, before the first step.
    """

    def __init__(self, built: StreamedSteps, params: Params, reported: bool):
        self._built, self._longest, self._reported = built, params.max_length, reported

    def __call__(self, step: int) -> Step:
        return self._built(step)

    def position(self, finished: int) -> tuple[int, int]:
        state = self._built.state_after(finished)
        return state.pass_, state.row

    def state(self, finished: int) -> bytes:
        return self._built.state_after(finished).as_bytes()

    def restore(self, finished: int, state: Path) -> None:
        if not state.is_file():
            raise other_steps("packs", "documents")
        self._built.restore(finished, StreamState.load(state))

    def count_together(
        self, accelerator: Accelerator, make_step: Callable[[int], Step]
    ) -> Callable[[int], Step]:
        return add_up(accelerator, make_step, self._longest)

    def report(self, accelerator: Accelerator, finished: int) -> Truncation | None:
        if self._reported:
            return None
        return full_report(accelerator, self._built.state_after(finished).report)


class PackReading(Protocol):
    """Origin of the packs of a run."""

    rows_read: ClassVar[int | None]
    indexed: ClassVar[bool]
    note: ClassVar[str]

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,
    ) -> Prepared:
        """Tokenise what is needed before the first step, as TrainingData does."""
        ...

    def open(
        self,
        train: Documents,
        chat: ChatFormat,
        *,
        evaluated: bool,
        rank: int = 0,
        ranks: int = 1,
        log: Log = lambda line: None,
    ) -> Stream:
        """Return one rank's stream at its beginning; `evaluated`: the run holds texts out."""
        ...

    def pass_tokens(self, train: Documents, chat: ChatFormat) -> int | None:
        """Return the tokens of a pass; None if they are not known before it is read."""
        ...


@dataclass(frozen=True)
class Packed:
    """Steps of packs, each of batch_size x max_length tokens."""

    params: Params
    reading: PackReading
    always_packed = True

    @property
    def rows_read(self) -> int | None:
        return self.reading.rows_read

    @property
    def indexed(self) -> bool:
        return self.reading.indexed

    @property
    def note(self) -> str:
        return self.reading.note

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,
    ) -> Prepared:
        return self.reading.prepare(log, between_rows=between_rows, moment=moment)

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
        """Return the run's clock; epochs are counted in tokens."""
        params, size = self.params, self.params.batch_size * self._packs(ranks)
        tokens = pack_tokens(params) * self._packs(ranks)
        wants_pass = params.num_train_epochs > 0 or params.eval_strategy == "epoch"
        of_pass = (self.reading.pass_tokens(train, chat) if wants_pass else None) or 0
        if params.num_train_epochs > 0:
            steps = max(1, math.ceil(params.num_train_epochs * of_pass / tokens))
            params = params.model_copy(update={"num_train_epochs": 0.0, "train_steps": steps})
        documents, of_steps = math.ceil(of_pass / tokens) * size, tokens_of_steps(params, ranks)
        return make_clock(params, documents, evaluated, ranks, tokens=of_steps)

    def _packs(self, ranks: int) -> int:
        return self.params.gradient_accumulation_steps * ranks

    def steps(
        self, data: Data, layout: Layout, rank: int, ranks: int, log: Log, *, even: bool
    ) -> Steps:
        stream = self._open(data, rank=rank, ranks=ranks, log=log)
        steps = StreamedSteps(stream, data.rules, clock_of_packs(self.params, ranks))
        return StreamSteps(steps, self.params, self.indexed)

    def _open(
        self, data: Data, *, rank: int = 0, ranks: int = 1, log: Log = lambda line: None
    ) -> Stream:
        evaluated = len(data.evaluation) > 0
        return self.reading.open(
            data.train, data.chat, evaluated=evaluated, rank=rank, ranks=ranks, log=log
        )

    def first_step(self, data: Data, layout: Layout, ranks: int) -> Step:
        """Return the first step of all ranks together, out of one stream."""
        stream = self._open(data)
        each = clock_of_packs(self.params, ranks).micro_batches(0)
        packs = [pack for _ in range(ranks) for pack in stream.next_step(each)]
        return build_streamed_step(packs, data.rules.at(0))

    def heaviest(self, data: Data, layout: Layout, ranks: int) -> tuple[Batch, bool]:
        """Return a stand-in: steps are built once and in order, each pack has one size."""
        noising, method = data.rules.noising, METHODS[self.params.training_method]
        rows = 1 + noising.copies
        share = noising.predicted(method.predicted) / rows
        tokens, longest = rows * pack_tokens(self.params), rows * self.params.max_length
        batch = documents_of(tokens, longest, predicted=share, copies=noising.copies > 0)
        return batch, self.params.gradient_accumulation_steps > 1

    def extent(self, data: Data, first: Step) -> dict[str, Any]:
        steps, clock = data.clock.cadence.steps, data.clock.tokens
        tokens = clock.after(steps) if clock else steps * first.tokens
        of_pass = self.reading.pass_tokens(data.train, data.chat)
        return {
            "documents_per_step": len(first.lengths),
            "tokens": tokens,
            "passes": round(tokens / of_pass, 2) if of_pass else None,
        }

    def smaller_batches(self) -> list[str]:
        tokens, packs = self.params.tokens_per_batch, self.params.gradient_accumulation_steps
        if not isinstance(tokens, int):
            return halved_batch(self.params)
        if tokens % 2 or tokens < 2 * self.params.max_length:
            return []
        return [f"tokens_per_batch {tokens // 2} with gradient_accumulation_steps {2 * packs}"]

    def step_size(self, clock: Clock, ranks: int) -> str:
        grows = "up to " if clock.tokens and clock.tokens.ends else ""
        return f"{grows}{self._packs(ranks) * pack_tokens(self.params)} tokens"
