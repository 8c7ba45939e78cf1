"""Choice of the way from rows to steps; steps of documents that are tokenised before the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..base.errors import JobError, Problem
from ..batch import Batch
from ..config.params import Params
from ..config.rules.stage import makes_packs
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..data.packing import Layout
from ..data.sources import prepared_folder
from ..models.backbones import is_packable
from ..run.outcome import Truncation
from ..training.step import Step
from .clock import Clock, make_clock, step_maker
from .corpus import Examples, Log, Prepared, prepare_corpus
from .data import Data, Steps, TrainingData, halved_batch, other_steps
from .heaviest import heaviest_batch
from .model import named_config
from .packed.documents import DocumentsReading
from .packed.folder import FolderReading
from .packed.rows import RowsReading
from .packed.steps import Packed


def training_data(params: Params) -> TrainingData:
    """Return how this run reads its data. The only place that knows of all ways.

    Raises JobError (exit 2) for a prepared folder in another stage than pretraining.
    """
    if folder := prepared_folder(params.dataset_name):
        if params.training_stage != "pretrain":
            got = f"training_stage {params.training_stage} on {folder}"
            expected = "training_stage pretrain for a folder of prepare, which holds texts"
            raise JobError(Problem("dataset_name", expected, got, "Or name files of dialogues."))
        return Packed(params, FolderReading(params, folder))
    if params.streaming:
        return Packed(params, RowsReading(params))
    if makes_packs(params) and _model_packs(params):
        return Packed(params, DocumentsReading(params))
    for name in ("train_tokens", "batch_warmup_tokens", "block_schedule"):
        if value := params.as_json()[name]:
            fix = "Only a step of packs has a fixed number of tokens."
            expected = "a model and a setting whose documents can be packed"
            raise JobError(Problem(name, expected, f"{value} with steps of documents", fix))
    return Stored(params)


def _model_packs(params: Params) -> bool:
    try:
        return is_packable(named_config(params).model_type)
    except JobError:  # reported where the model is loaded
        return False


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
        if state.is_file():
            raise other_steps("documents", "packs")

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
    always_packed = False
    rows_read = None
    indexed = True
    note = ""

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,
    ) -> Prepared:
        return prepare_corpus(self.params, log, between_rows=between_rows, moment=moment)

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
        return make_clock(self.params, len(train), evaluated, ranks, done=done, seen=seen)

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
        rows = halved_batch(self.params)
        if isinstance(tokens, int):
            if tokens >= 2 * self.params.max_length:
                rows.append(f"tokens_per_batch {tokens // 2}")
        elif size > 1:
            longest = self.params.max_length
            rows.append(f"tokens_per_batch {max(longest, size * longest // 4)}")
        return rows

    def step_size(self, clock: Clock, ranks: int) -> str:
        return f"{clock.step_size} documents"
