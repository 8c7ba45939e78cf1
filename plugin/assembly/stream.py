"""Streaming pretraining: data is read while the model trains on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Builder, Documents
from ..data.formats import Dropped, Example, RowResult
from ..data.hold_out import PROMPT_IN_EVAL, prompt_key
from ..data.packing import Layout, check_budget
from ..data.prepare import Encoding, SplitReport, encode_rows
from ..data.sources import has_eval_split
from ..data.stream import ROW_INDEX, Pack, Stream, StreamPlan, StreamState
from ..run.outcome import Truncation
from ..training.exchange import gather_values
from ..training.step import Step, StepRules, build_streamed_step
from ..training.token_clock import TokenClock, token_clock
from .corpus import Examples, Log, Prepared, encoding, make_tokenizer, remarks, unread
from .model import base_config

EVAL_DOCUMENTS = 512
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
    tokenizer = make_tokenizer(params, lambda _: islice(data.training(0, 1), TOKENIZER_ROWS))
    base_config(params, tokenizer)
    chat = ChatFormat(tokenizer)
    evaluation, eval_report = _encode_some(data.evaluation(), chat, encoding(params))
    if data.wants_eval and not len(evaluation):
        log("eval_strategy: nothing to hold out for evaluation; it is off.")
    elif data.wants_eval and not data.own_files:
        log(f"eval_strategy: {held} is held out; {len(evaluation)} documents of them are evaluated")
    stream = open_stream(data if len(evaluation) else data.without_evaluation(), chat)
    stream.fill()
    begun = stream.state()
    builder = Builder()
    for _, document in begun.buffer:
        builder.add(
            document.ids,
            document.supervised,
            document.prompt,
            f"row {document.index // ROW_INDEX + 1}",
        )
    for line in (*data.examples.lines(), *remarks({"train": begun.report, "eval": eval_report})):
        log(f"dataset_name: {line}")
    return Prepared(
        tokenizer, chat, builder.build(), evaluation, {"train": begun.report, "eval": eval_report}
    )


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

    def training(self, first: int, every: int) -> Rows:
        """Yield a pass's rows `first`, `first + every`, ...; rows of evaluation are dropped."""
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
    builder, report = Builder(), SplitReport()
    while report.documents < EVAL_DOCUMENTS and (some := list(islice(rows, _AT_ONCE))):
        for example, documents in zip(some, encode_rows(some, chat, how, report), strict=True):
            for one in documents[: EVAL_DOCUMENTS - report.documents]:
                builder.add(one.ids, one.supervised, one.prompt, example.row)
                report.documents += 1
                report.tokens += one.ids.size
                report.supervised += int(np.count_nonzero(one.supervised))
    return builder.build(), report


def pack_tokens(params: Params) -> int:
    """Return the tokens of a pack, which is a micro-batch."""
    return (
        params.batch_size * params.max_length
        if params.tokens_per_batch == "auto"
        else params.tokens_per_batch
    )


def tokens_of_steps(params: Params, ranks: int) -> TokenClock | None:
    """Return the token clock of a run whose length or step size is counted in tokens."""
    if not (params.train_tokens or params.batch_warmup_tokens):
        return None
    return token_clock(
        pack=pack_tokens(params),
        largest=params.gradient_accumulation_steps,
        devices=ranks,
        warmup=params.batch_warmup_tokens,
    )


def open_stream(
    data: StreamedData,
    chat: ChatFormat,
    *,
    rank: int = 0,
    ranks: int = 1,
    log: Log = lambda line: None,
) -> Stream:
    """Return this rank's stream at its beginning."""
    params, tokens = data.params, pack_tokens(data.params)
    spare = int(
        params.stochastic_length > 0 and chat.start_id is not None
    )  # the tail of a text cut in two opens anew
    how = encoding(params)
    how = replace(how, max_length=min(how.max_length, tokens - spare))
    plan = StreamPlan(tokens, params.gradient_accumulation_steps, params.seed, rank, ranks, spare)
    return Stream(data.training, chat, how, plan, dataset=params.dataset_name, log=log)


class StreamedSteps:
    """`steps(k)` builds step k (from 0), in order; `state_after(k)` is the state of the stream once
    k steps are built.

    Steps are built ahead of their use, so the states of the last few are kept; a state shares its
    documents with the stream.
    """

    def __init__(self, stream: Stream, rules: StepRules, tokens: TokenClock | None = None):
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
        packs = self._tokens.micro_batches(step) if self._tokens else None
        built = build_streamed_step(self._stream.next_step(packs), self._rules)
        self._next = step + 1
        self._states = {
            number: state for number, state in self._states.items() if number >= step - 1
        }
        self._states[self._next] = self._stream.state()
        return built

    def state_after(self, finished: int) -> StreamState:
        return self._states[finished]


def start_streaming(
    params: Params,
    chat: ChatFormat,
    rules: StepRules,
    log: Log,
    *,
    evaluated: bool,
    rank: int,
    ranks: int,
) -> StreamedSteps:
    """Return one rank's steps. Notes on the format were logged when the data was prepared."""
    data = StreamedData.of(params, lambda note: None, between_rows=lambda: None)
    data = data if evaluated else data.without_evaluation()
    # Steps are built in a thread of their own, and a tokenizer that two threads use may fail with
    # "Already borrowed".
    own = ChatFormat(deepcopy(chat.tokenizer))
    stream = open_stream(data, own, rank=rank, ranks=ranks, log=log)
    return StreamedSteps(stream, rules, tokens_of_steps(params, ranks))


def first_step(
    params: Params,
    chat: ChatFormat,
    rules: StepRules,
    *,
    evaluated: bool,
    ranks: int,
) -> Step:
    """Return the first step of all ranks together, out of one stream, for a dry run."""
    data = StreamedData.of(params, lambda note: None, between_rows=lambda: None)
    stream = open_stream(data if evaluated else data.without_evaluation(), chat)
    tokens = tokens_of_steps(params, ranks)
    each = tokens.micro_batches(0) if tokens else None
    packs: list[Pack] = [pack for _ in range(ranks) for pack in stream.next_step(each)]
    return build_streamed_step(packs, rules)


def add_up(
    accelerator: Accelerator, make_step: Callable[[int], Step], longest: int
) -> Callable[[int], Step]:
    """Return `make_step` with the counts of all ranks added: one small reduction a step.

    `longest`: tokens that a document may have. Lengths travel as a histogram, so that every rank
    sends the same size. Collective.
    """
    if accelerator.num_processes == 1:
        return make_step

    def whole(step: int) -> Step:
        own = make_step(step)
        facts = [
            own.count,
            own.masked,
            own.supervised,
            own.cut,
            *np.bincount(own.lengths, minlength=longest + 1),
        ]
        sums = torch.tensor(facts, dtype=torch.float64, device=accelerator.device)
        total = cast("torch.Tensor", accelerator.reduce(sums, reduction="sum")).cpu().numpy()
        masked, supervised, cut = total[1:4].astype(int).tolist()
        lengths = np.repeat(np.arange(longest + 1), total[4:].astype(int)).tolist()
        return replace(
            own,
            count=float(total[0]),
            masked=masked,
            supervised=supervised,
            cut=cut,
            lengths=tuple(lengths),
        )

    return whole


def full_report(accelerator: Accelerator, report: SplitReport) -> Truncation:
    """Return the fate of the rows of the first pass so far, over all ranks. Collective."""
    share: dict[str, Any] = {
        "rows": report.rows,
        "documents": report.documents,
        "truncated": report.truncated,
        "dropped": report.dropped,
    }
    shares = gather_values(accelerator, share)
    dropped: dict[str, int] = {}
    for one in shares:
        for reason, count in one["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    rows, documents, truncated = (
        sum(one[key] for one in shares) for key in ("rows", "documents", "truncated")
    )
    return Truncation(rows=rows, documents=documents, truncated=truncated, dropped=dropped)
