"""Packs of a run: their size, their encoding, and the stream that fills them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ...config.params import Params
from ...data.chat import ChatFormat
from ...data.documents import Builder, Document, Documents
from ...data.prepare import Encoding, SplitReport
from ...data.stream import ROW_INDEX, Source, Stream, StreamPlan
from ...training.token_clock import TokenClock, token_clock
from ..corpus import Log, encoding

EVAL_DOCUMENTS = 512  # most that are evaluated


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
    return clock_of_packs(params, ranks)


def clock_of_packs(params: Params, ranks: int) -> TokenClock:
    """Return the tokens of a run's steps; without a warm-up all steps have the same."""
    return token_clock(
        pack=pack_tokens(params),
        largest=params.gradient_accumulation_steps,
        devices=ranks,
        warmup=params.batch_warmup_tokens,
    )


def pack_encoding(params: Params, chat: ChatFormat) -> tuple[Encoding, int]:
    """Return the encoding of documents that fit into a pack, and the tokens they may still grow by.

    They grow where a text is cut in two: its tail opens anew.
    """
    how, spare = encoding(params), params.stochastic_length > 0 and chat.start_id is not None
    most = min(how.max_length, pack_tokens(params) - int(spare))
    return replace(how, max_length=most), int(spare)


def open_packs(
    params: Params,
    source: Source,
    chat: ChatFormat,
    *,
    rank: int = 0,
    ranks: int = 1,
    log: Log = lambda line: None,
) -> Stream:
    """Return this rank's packs of a source, at their beginning."""
    how, spare = pack_encoding(params, chat)
    packs = params.gradient_accumulation_steps
    plan = StreamPlan(pack_tokens(params), packs, params.seed, rank, ranks, spare)
    return Stream(source, chat, how, plan, dataset=params.dataset_name, log=log)


def take_evaluated(
    found: Iterable[tuple[str, Sequence[Document]]], report: SplitReport
) -> Documents:
    """Collect the first EVAL_DOCUMENTS documents of (row, its documents), and count them.

    No more rows are taken than they need.
    """
    builder = Builder()
    for row, documents in found:
        for one in documents[: EVAL_DOCUMENTS - report.documents]:
            builder.add(one.ids, one.supervised, one.prompt, row)
            report.documents += 1
            report.tokens += one.ids.size
            report.supervised += int(np.count_nonzero(one.supervised))
        if report.documents == EVAL_DOCUMENTS:
            break
    return builder.build()


def stored_beginning(stream: Stream, noun: str) -> tuple[Documents, SplitReport]:
    """Return the documents that a stream begins with, named by their row or text."""
    stream.fill()
    begun, builder = stream.state(), Builder()
    for _, document in begun.buffer:
        row = f"{noun} {document.index // ROW_INDEX + 1}"
        builder.add(document.ids, document.supervised, document.prompt, row)
    return builder.build(), begun.report
