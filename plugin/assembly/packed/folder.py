"""Pretraining on a prepared folder: its tokenizer, its documents, its packs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...base.errors import JobError, Problem
from ...config.families import FAMILIES
from ...config.params import Params
from ...data.chat import ChatFormat
from ...data.documents import Builder, Document, Documents
from ...data.files.columns import FIELD
from ...data.packing import Layout, check_budget
from ...data.prepare import Encoding, SplitReport, check_trainable, split_text, text_room
from ...data.stored.manifest import TOKENIZER, Manifest, read_manifest
from ...data.stored.order import Bijection, Order
from ...data.stored.source import stored_texts
from ...data.stored.split import StoredSplit, check_shards
from ...data.stream import Stream
from ...data.tokenizer_digest import tokenizer_digest
from ...models.tokenizer import load_tokenizer
from ..corpus import Log, Prepared, encoding, tokenizer_source
from ..model import base_config, named_config
from .packs import (
    EVAL_DOCUMENTS,
    open_packs,
    pack_encoding,
    pack_tokens,
    stored_beginning,
    take_evaluated,
)

_HELD_OUT = 2  # keeps the choice of evaluation apart from the orders of passes
_AGAIN = "Leave tokenizer_name empty, or prepare the texts with that tokenizer."


@dataclass(frozen=True)
class FolderReading:
    """Packs of a folder that `prepare` wrote."""

    params: Params
    folder: Path
    rows_read: ClassVar[int | None] = None
    indexed: ClassVar[bool] = False
    note: ClassVar[str] = (
        "prepared folder: the data reported is what a run begins with; the rest is read while it trains"
    )

    def prepare(
        self,
        log: Log,
        *,
        between_rows: Callable[[], None] = lambda: None,
        moment: datetime | None = None,  # of no use here: texts know no chat template
    ) -> Prepared:
        params = self.params
        check_budget(params.max_length, Layout(True, pack_tokens(params)))
        manifest = read_manifest(self.folder)
        if note := check_shards(self.folder, manifest):
            log(f"{FIELD}: {note}")
        if params.streaming:
            log("streaming: makes no difference; a prepared folder is read while it trains")
        tokenizer = choose_tokenizer(params, self.folder, manifest, log)
        base_config(params, tokenizer)
        chat = ChatFormat(tokenizer)
        evaluation, eval_report = Builder().build(), SplitReport()
        if params.eval_strategy != "no":
            held = StoredSplit(self.folder, manifest, "eval")
            # the corpus's seed: runs and stages of other seeds are evaluated on the same texts
            of_corpus = manifest.split.seed
            evaluation, eval_report = evaluated(held, chat, encoding(params), of_corpus)
            _log_evaluation(len(evaluation), len(held), log)
        train = StoredSplit(self.folder, manifest, "train")
        if not len(train):
            check_trainable(SplitReport(), params.dataset_name, params.max_length)
        stream = self._open(manifest, train, chat, rank=0, ranks=1, log=lambda line: None)
        # The numbers of stored texts, not their rows: a row costs a look into another file.
        begun, report = stored_beginning(stream, "text")
        return Prepared(tokenizer, chat, begun, evaluation, {"train": report, "eval": eval_report})

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
        manifest = read_manifest(self.folder)
        split = StoredSplit(self.folder, manifest, "train")
        return self._open(manifest, split, chat, rank=rank, ranks=ranks, log=log)

    def _open(
        self,
        manifest: Manifest,
        split: StoredSplit,
        chat: ChatFormat,
        *,
        rank: int,
        ranks: int,
        log: Log,
    ) -> Stream:
        source = stored_texts(split, self._order(manifest, split))
        return open_packs(self.params, source, chat, rank=rank, ranks=ranks, log=log)

    def _order(self, manifest: Manifest, split: StoredSplit) -> Order:
        weights = [source.weight for source in manifest.sources]
        return Order(split.sizes, weights, self.params.seed)

    def pass_tokens(self, train: Documents, chat: ChatFormat) -> int:
        """Return the tokens of a pass, start and end tokens included; no ids are read."""
        manifest = read_manifest(self.folder)
        split = StoredSplit(self.folder, manifest, "train")
        how, _ = pack_encoding(self.params, chat)
        of_source = [0] * len(manifest.sources)
        for shard, lengths in zip(split.shards, split.lengths(), strict=True):
            of_source[shard.source] += opened_tokens(lengths, chat, how)
        slots = self._order(manifest, split).slots
        every = zip(of_source, slots, split.sizes, strict=True)
        return math.ceil(sum(tokens * slot / max(1, size) for tokens, slot, size in every))


def opened_tokens(lengths: np.ndarray, chat: ChatFormat, how: Encoding) -> int:
    """Count the tokens of the documents into which texts of `lengths` tokens are split."""
    bodies = lengths + how.insert_eos
    documents = -(-bodies // text_room(chat, how))
    return int(bodies.sum()) + int(documents.sum()) * len(chat.opening)


def evaluated(
    split: StoredSplit, chat: ChatFormat, how: Encoding, seed: int
) -> tuple[Documents, SplitReport]:
    """Return EVAL_DOCUMENTS documents of texts chosen by the seed, or all if there are fewer."""
    report = SplitReport()

    def chosen() -> Iterator[tuple[str, list[Document]]]:
        most = min(len(split), EVAL_DOCUMENTS)
        for number in Bijection(len(split), (seed, _HELD_OUT))(np.arange(most)).tolist():
            row, ids = split.row(number), split.tokens(number)
            report.rows += 1
            report.lengths.append(len(chat.opening) + ids.size + how.insert_eos)
            yield row, split_text(ids, row, chat, how, report)

    return take_evaluated(chosen() if len(split) else (), report), report


def _log_evaluation(documents: int, texts: int, log: Log) -> None:
    if not documents:
        log("eval_strategy: nothing was held out for evaluation; it is off.")
    else:
        log(f"eval_strategy: {documents} documents of the {texts} texts held out are evaluated")


def choose_tokenizer(
    params: Params, folder: Path, manifest: Manifest, log: Log
) -> PreTrainedTokenizerBase:
    """Return the named tokenizer, else the model's, else the folder's own, all of one digest.

    Raises JobError: exit 2 for another tokenizer than the prepared one, exit 4 for one that does
    not load.
    """
    family = FAMILIES[named_config(params).model_type]
    own = load_tokenizer(str(folder / TOKENIZER), family=family, field=FIELD, log=log)
    digest = tokenizer_digest(own)
    digests = {digest}
    if manifest.tokenizer.digest not in digests:
        # A family may have named its mask token in the loaded one.
        digests.add(tokenizer_digest(AutoTokenizer.from_pretrained(folder / TOKENIZER)))
    if manifest.tokenizer.digest not in digests:
        got = f"digest {', '.join(sorted(digests))}"
        expected = f"the tokenizer of digest {manifest.tokenizer.digest} in {folder / TOKENIZER}"
        raise JobError(Problem(FIELD, expected, got, "Restore its files."))
    field, name = tokenizer_source(params)
    if not name:
        return own
    try:
        named = load_tokenizer(name, family=family, field=field)
    except JobError as error:
        if params.tokenizer_name:
            raise
        log(f"{field}: its tokenizer is not used, {FIELD}'s is; {error.problems[0]}")
        return own
    if (other := tokenizer_digest(named)) != digest:
        expected = f"the tokenizer that {folder} was prepared with, digest {digest}"
        got = f"that of {name}, digest {other}"
        fix = _AGAIN if params.tokenizer_name else "Prepare the texts with the model's tokenizer."
        raise JobError(Problem(field, expected, got, fix))
    return named
