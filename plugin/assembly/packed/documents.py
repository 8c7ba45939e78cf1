"""Pretraining on documents that are tokenised before the first step, in packs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from ...config.params import Params
from ...data.chat import ChatFormat
from ...data.documents import Documents
from ...data.packing import Layout, check_budget
from ...data.stored.order import Order
from ...data.stored.source import stored_documents
from ...data.stream import Stream
from ..corpus import Log, Prepared, prepare_corpus
from .packs import open_packs, pack_encoding, pack_tokens


@dataclass(frozen=True)
class DocumentsReading:
    """Packs of tokenised documents."""

    params: Params
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
        params = self.params
        check_budget(params.max_length, Layout(True, pack_tokens(params)))
        return prepare_corpus(
            params,
            log,
            between_rows=between_rows,
            moment=moment,
            train_encoding=lambda chat: pack_encoding(params, chat)[0],
        )

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
        source = stored_documents(train, Order([len(train)], [1.0], self.params.seed))
        return open_packs(self.params, source, chat, rank=rank, ranks=ranks, log=log)

    def pass_tokens(self, train: Documents, chat: ChatFormat) -> int:
        return int(train.ids.size)
