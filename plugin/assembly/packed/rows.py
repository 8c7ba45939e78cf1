"""Pretraining on rows that are read while the model trains on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import ClassVar

from ...config.params import Params
from ...data.chat import ChatFormat
from ...data.documents import Document, Documents
from ...data.formats import Dropped, Example, RowResult
from ...data.hold_out import PROMPT_IN_EVAL, prompt_key
from ...data.packing import Layout, check_budget
from ...data.prepare import Encoding, SplitReport, encode_rows
from ...data.sources import has_eval_split
from ...data.stream import Stream
from ..corpus import Examples, Log, Prepared, encoding, make_tokenizer, remarks, unread
from ..model import base_config
from .packs import EVAL_DOCUMENTS, open_packs, pack_tokens, stored_beginning, take_evaluated

EVAL_ROWS = 20_000  # rows searched for held-out texts
MOST_HELD = 0.01  # share of the texts held out where the dataset has no eval split of its own
TOKENIZER_ROWS = 50_000  # rows that a new tokenizer is trained on
HELD_OUT = "held out for evaluation"
_AT_ONCE = 32  # rows of evaluation tokenised together

Rows = Iterator[RowResult]


def prepare_stream(
    params: Params,
    log: Log,
    *,
    between_rows: Callable[[], None] = lambda: None,
    moment: datetime | None = None,  # of no use here: texts know no chat template
) -> Prepared:
    """Make the tokenizer, the evaluation documents and, as `train`, the documents that the stream
    begins with.

    Reads a bounded number of rows. Raises JobError (exit 2, 3 or 4).
    """
    check_budget(params.max_length, Layout(True, pack_tokens(params)))
    data = StreamedData.of(params, log, between_rows=between_rows)
    held = f"one text in {one_in(params)}" if data.wants_eval else ""
    for note in unread(params.dataset_name, data.wants_eval, data.own_files, held):
        log(f"dataset_name: {note}")
    tokenizer = make_tokenizer(
        params, lambda _: islice(data.training(0, 0, 1), TOKENIZER_ROWS), log
    )
    base_config(params, tokenizer)
    chat = ChatFormat(tokenizer)
    evaluation, eval_report = _encode_some(data.evaluation(), chat, encoding(params))
    if data.wants_eval and not len(evaluation):
        log("eval_strategy: nothing to hold out for evaluation; it is off.")
    elif data.wants_eval and not data.own_files:
        log(f"eval_strategy: {held} is held out; {len(evaluation)} documents of them are evaluated")
    used = data if len(evaluation) else data.without_evaluation()
    train, report = stored_beginning(open_packs(params, used.training, chat), "row")
    for line in (*data.examples.lines(), *remarks({"train": report, "eval": eval_report})):
        log(f"dataset_name: {line}")
    return Prepared(tokenizer, chat, train, evaluation, {"train": report, "eval": eval_report})


@dataclass(frozen=True)
class RowsReading:
    """Packs of rows that are read while they are trained on."""

    params: Params
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
        # Notes on the format were logged when the data was prepared.
        data = StreamedData.of(self.params, lambda note: None, between_rows=lambda: None)
        data = data if evaluated else data.without_evaluation()
        # Steps are built in a thread of their own, and a tokenizer that two threads use may fail
        # with "Already borrowed".
        own = ChatFormat(deepcopy(chat.tokenizer))
        return open_packs(self.params, data.training, own, rank=rank, ranks=ranks, log=log)

    def pass_tokens(self, train: Documents, chat: ChatFormat) -> None:
        """Return nothing: nobody has read the pass yet."""


@dataclass(frozen=True)
class StreamedData:
    """Rows of a streaming run, divided between training and evaluation."""

    params: Params
    examples: Examples
    wants_eval: bool
    own_files: bool  # the dataset has an eval split of its own
    keys: frozenset[int]  # of that split's texts, as far as it is read

    @staticmethod
    def of(params: Params, log: Log, *, between_rows: Callable[[], None]) -> StreamedData:
        examples = Examples(params, log, between_rows=between_rows)
        wants_eval = params.eval_strategy != "no"
        own_files = wants_eval and has_eval_split(params.dataset_name)
        read = islice(examples("eval"), EVAL_DOCUMENTS) if own_files else ()
        keys = frozenset(prompt_key(one, params.seed) for one in read if isinstance(one, Example))
        return StreamedData(params, examples, wants_eval, own_files, keys)

    def without_evaluation(self) -> StreamedData:
        return replace(self, wants_eval=False, own_files=False, keys=frozenset())

    def training(self, pass_: int, first: int, every: int) -> Rows:
        """Yield the rows `first`, `first + every`, ... of any pass; rows of evaluation are dropped."""
        reason = PROMPT_IN_EVAL if self.own_files else HELD_OUT
        for example in self.examples("train", first, every):
            held = isinstance(example, Example) and self._is_held(example)
            yield Dropped(example.row, reason) if held else example

    def evaluation(self) -> Rows:
        if self.own_files:
            yield from islice(self.examples("eval"), EVAL_DOCUMENTS)
        elif self.wants_eval:
            for example in islice(self.examples("train"), EVAL_ROWS):
                if isinstance(example, Example) and self._is_held(example):
                    yield example

    def _is_held(self, example: Example) -> bool:
        if not self.wants_eval:
            return False
        key = prompt_key(example, self.params.seed)
        return key in self.keys if self.own_files else key % one_in(self.params) == 0


def one_in(params: Params) -> int:
    """Return n where one text in n is held out; a large corpus needs at most 0.01 of itself."""
    return math.ceil(1 / min(params.eval_share, MOST_HELD))


def _encode_some(rows: Rows, chat: ChatFormat, how: Encoding) -> tuple[Documents, SplitReport]:
    """Tokenise the first EVAL_DOCUMENTS documents of `rows`; read no more rows than they take."""
    report = SplitReport()

    def encoded() -> Iterator[tuple[str, list[Document]]]:
        while some := list(islice(rows, _AT_ONCE)):
            names = (example.row for example in some)
            yield from zip(names, encode_rows(some, chat, how, report), strict=True)

    return take_evaluated(encoded(), report), report
