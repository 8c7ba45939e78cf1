"""Packs of pretraining: an endless sequence of documents, packed by best fit from a buffer.

A source gives the rows of a pass, or texts and documents whose tokens are stored. Every pass holds
the same of them; rank r of R ranks reads places r, r + R, ... A pack starts with the
buffer's oldest document, so that no document waits forever. It continues in a seeded random order,
which mixes neighbouring rows, and ends with the documents that fit best. The buffer, the next row
and three counters are the full state.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from ..base.errors import JobError, Problem, data_error
from .bulk_tokenizer import BulkTokenizer
from .chat import ChatFormat
from .documents import Document
from .formats import Dropped, Example, RowResult
from .prepare import (
    CHUNK,
    Encoding,
    SplitReport,
    character_count,
    check_trainable,
    encode_rows,
    split_text,
)
from .steps import Slot
from .stored.source import StoredDocument, StoredText

CHARACTERS_A_TOKEN = 4  # of a stored token, where characters are counted
# Document n of row r has the index r * ROW_INDEX + n: decimal, so that a person can read it.
ROW_INDEX = 1_000_000
BUFFERED = 16  # packs whose tokens the buffer holds at least
CHARACTERS = 1 << 18  # a tokenizer call ends with the row that passes it; small packs need less
LENGTHS = 10_000  # rows whose lengths the report keeps
_SHUFFLE = 1 << 60  # keeps this random stream apart from those of masks, times and pass orders

Item = RowResult | StoredText | StoredDocument
# (pass, first, every): reads the places `first`, `first + every`, ... of a pass and only counts the
# others.
Source = Callable[[int, int, int], Iterator[Item]]
Pack = tuple[tuple[Document, Slot], ...]


@dataclass(frozen=True)
class StreamPlan:
    """Size of the packs, and this rank's share of the stream."""

    tokens: int  # limit of a pack
    packs: int  # packs of a step, on each rank
    seed: int
    rank: int = 0
    ranks: int = 1
    spare: int = 0  # tokens that a document may still grow by


@dataclass(frozen=True)
class StreamState:
    """Position of a stream between two steps.

    It shares its documents with the stream, which never changes a document.
    """

    pass_: int
    row: int  # next row of the pass to read, counted over all ranks
    learned: int  # supervised tokens read in this pass
    packs: int  # taken so far
    documents: int  # taken so far
    rank: int
    ranks: int
    report: SplitReport  # of the first pass
    buffer: tuple[tuple[int, Document], ...]  # (pass of its noise, document), oldest first

    def as_bytes(self) -> bytes:
        """Return a safetensors file: counters in its metadata, the buffer as flat arrays."""
        kept = [document for _, document in self.buffer]
        none = np.zeros(0, np.int32)
        tensors = {
            "ids": np.concatenate([none, *(one.ids for one in kept)]),
            "supervised": np.concatenate([none.astype(bool), *(one.supervised for one in kept)]),
            "lengths": np.array([one.ids.size for one in kept], dtype=np.int64),
            "prompts": np.array([one.prompt for one in kept], dtype=np.int64),
            "indices": np.array([one.index for one in kept], dtype=np.int64),
            "passes": np.array([pass_ for pass_, _ in self.buffer], dtype=np.int64),
        }
        facts = {
            name: value
            for name, value in asdict(replace(self, buffer=())).items()
            if name != "buffer"
        }
        return save(tensors, metadata={"stream": json.dumps(facts)})

    @staticmethod
    def load(path: Path) -> StreamState:
        """Read a file of `as_bytes`."""
        with safe_open(path, "numpy") as file:
            facts = json.loads(file.metadata()["stream"])
            names = ("lengths", "ids", "supervised", "prompts", "indices", "passes")
            lengths, ids, supervised, prompts, indices, passes = (
                file.get_tensor(name) for name in names
            )
        borders = np.cumsum(lengths)[:-1]
        parts = zip(
            np.split(ids, borders),
            np.split(supervised, borders),
            prompts.tolist(),
            indices.tolist(),
            strict=True,
        )
        buffer = (
            zip(passes.tolist(), (Document(*part) for part in parts), strict=True)
            if lengths.size
            else ()
        )
        return StreamState(
            **{**facts, "report": SplitReport(**facts["report"])}, buffer=tuple(buffer)
        )


class Stream:
    """A rank's share of the data, step after step.

    Raises JobError (exit 3) if a full pass holds nothing to learn.
    """

    def __init__(
        self,
        source: Source,
        chat: ChatFormat,
        how: Encoding,
        plan: StreamPlan,
        *,
        dataset: str,
        log: Callable[[str], None] = lambda line: None,
    ):
        assert how.max_length + plan.spare <= plan.tokens, "a document must fit into a pack"
        self._source, self._chat, self._how, self._plan = source, chat, how, plan
        self._dataset, self._log = dataset, log
        self._bulk: BulkTokenizer | None = None  # of rows, which a prepared folder has not
        start = StreamState(0, plan.rank, 0, 0, 0, plan.rank, plan.ranks, SplitReport(), ())
        self._move_to(start)

    def restore(self, state: StreamState) -> None:
        """Resume from `state`: the next steps are those that would have followed it.

        Raises JobError (exit 2) for the state of another rank.
        """
        if (state.rank, state.ranks) != (self._plan.rank, self._plan.ranks):
            expected, got = (f"process {one.rank} of {one.ranks}" for one in (state, self._plan))
            fix = "A run in packs resumes with its previous number of processes."
            raise JobError(Problem("resume", expected, got, fix))
        self._move_to(state)

    def _move_to(self, state: StreamState) -> None:
        self._pass, self._row, self._learned = state.pass_, state.row, state.learned
        self._packs, self._documents = state.packs, state.documents
        self._report = _copy(state.report)
        self._buffer = list(state.buffer)
        self._tokens = sum(map(self._cost, self._buffer))
        self._items = self._source(self._pass, self._row, self._plan.ranks)

    def state(self) -> StreamState:
        """Return the position after the last step."""
        plan, report = self._plan, _copy(self._report)
        counters = (self._pass, self._row, self._learned, self._packs, self._documents)
        return StreamState(*counters, plan.rank, plan.ranks, report, tuple(self._buffer))

    def next_step(self, packs: int | None = None) -> list[Pack]:
        """Return the packs of this rank's next step, each of at most `tokens` tokens.

        `packs`: of this step, if it is not the plan's number.
        """
        return [self._take() for _ in range(packs or self._plan.packs)]

    def fill(self) -> None:
        """Read rows until the buffer holds BUFFERED packs."""
        while self._tokens < BUFFERED * self._plan.tokens:
            self._read()

    def _cost(self, entry: tuple[int, Document]) -> int:
        return entry[1].ids.size + self._plan.spare

    def _take(self) -> Pack:
        self.fill()
        plan = self._plan
        # A function of seed, rank and pack number, so that no generator has to be saved.
        key, counter = (
            np.array([plan.seed ^ _SHUFFLE, self._packs], np.uint64),
            np.array([0, 0, 0, plan.rank], np.uint64),
        )
        order = np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(
            len(self._buffer)
        )
        chosen = choose_pack([self._cost(entry) for entry in self._buffer], order, plan.tokens)
        # Stratified times follow the ordinal. Each rank has its own range of ordinals, so that its
        # documents cover all times evenly.
        first = (plan.rank << 32) + self._documents
        entries = [self._buffer[place] for place in chosen]
        pack = tuple(
            (document, Slot(pass_, first + number, document.index))
            for number, (pass_, document) in enumerate(entries)
        )
        gone = set(chosen)
        self._buffer = [entry for place, entry in enumerate(self._buffer) if place not in gone]
        self._tokens -= sum(map(self._cost, entries))
        self._packs, self._documents = self._packs + 1, self._documents + len(pack)
        return pack

    def _read(self) -> None:
        """Read the next places of the pass into the buffer; begin the next pass where it ends."""
        items: list[Item] = []
        numbers: list[int] = []
        characters = 0
        enough = min(CHARACTERS, CHARACTERS_A_TOKEN * BUFFERED * self._plan.tokens)
        for item in self._items:
            items.append(item)
            numbers.append(self._row)
            self._row += self._plan.ranks
            characters += _characters(item)
            if len(items) == CHUNK or characters >= enough:
                break
        else:
            self._add(items, numbers)
            self._end_pass()
            return
        self._add(items, numbers)

    def _add(self, items: Sequence[Item], numbers: Sequence[int]) -> None:
        # Later passes would only repeat the report of the first.
        report = self._report if self._pass == 0 else SplitReport()
        for entry in self._entries(items, numbers, report):
            self._buffer.append(entry)
            self._tokens += self._cost(entry)
            document = entry[1]
            learned = int(np.count_nonzero(document.supervised))
            self._learned += learned
            report.documents += 1
            report.tokens += document.ids.size
            report.supervised += learned
        del report.lengths[LENGTHS:]

    def _entries(
        self, items: Sequence[Item], numbers: Sequence[int], report: SplitReport
    ) -> Iterator[tuple[int, Document]]:
        """Yield (pass of its noise, document with its index in the data)."""
        rows = [item for item in items if isinstance(item, Example | Dropped)]
        if rows and self._bulk is None:
            self._bulk = BulkTokenizer(self._chat, self._log)
        encoded = iter(encode_rows(rows, self._chat, self._how, report, self._bulk) if rows else ())
        for place, item in zip(numbers, items, strict=True):
            if isinstance(item, StoredDocument):
                report.rows += 1
                yield item.visit, item.document
            elif isinstance(item, StoredText):
                for document in self._of_text(item, report):
                    yield item.visit, _of_row(item.number, document)
            else:
                for document in next(encoded):
                    yield self._pass, _of_row(place, document)

    def _of_text(self, text: StoredText, report: SplitReport) -> list[Document]:
        chat, how = self._chat, self._how
        report.rows += 1
        report.lengths.append(len(chat.opening) + text.ids.size + how.insert_eos)
        return split_text(text.ids, f"document {text.number + 1}", chat, how, report)

    def _end_pass(self) -> None:
        plan = self._plan
        if not self._learned:
            if plan.ranks > 1 and not self._row // plan.ranks:
                expected = f"a row for each of {plan.ranks} processes"
                got = f"{self._dataset}, which has none for process {plan.rank}"
                raise data_error("dataset_name", expected, got, "Lower num_processes.")
            report = self._report if self._pass == 0 else SplitReport()
            check_trainable(report, self._dataset, self._how.max_length)
        rows = f"{self._row // plan.ranks} rows{' of this process' if plan.ranks > 1 else ''}"
        self._log(f"data: pass {self._pass + 1} ended after {rows}; the next begins")
        self._pass, self._row, self._learned = self._pass + 1, plan.rank, 0
        self._items = self._source(self._pass, self._row, plan.ranks)


def _characters(item: Item) -> int:
    """Return the size of an item in characters, by which a reading ends."""
    if isinstance(item, StoredText):
        return CHARACTERS_A_TOKEN * item.ids.size
    if isinstance(item, StoredDocument):
        return CHARACTERS_A_TOKEN * item.document.ids.size
    return character_count(item)


def _of_row(number: int, document: Document) -> Document:
    return replace(document, index=number * ROW_INDEX + document.index)


def choose_pack(costs: Sequence[int], order: NDArray[np.int64], budget: int) -> list[int]:
    """Choose the documents of a pack by their places in the buffer; `costs` are their tokens.

    The pack starts with the first document, continues in `order` up to a document that does not
    fit, and is filled up with the longest that still fits; of equals, the oldest.
    """
    chosen, left = [0], budget - costs[0]
    assert left >= 0
    for place in order.tolist():
        if place == 0:
            continue
        if costs[place] > left:
            break
        chosen.append(place)
        left -= costs[place]
    taken = set(chosen)
    rest = sorted((cost, -place) for place, cost in enumerate(costs) if place not in taken)
    while at := bisect_right(rest, (left, 0)):
        cost, place = rest.pop(at - 1)
        chosen.append(-place)
        left -= cost
    return chosen


def _copy(report: SplitReport) -> SplitReport:
    rows = {reason: list(some) for reason, some in report.dropped_rows.items()}
    remarked = {remark: list(some) for remark, some in report.remark_rows.items()}
    lists = {"lengths": list(report.lengths), "truncated_rows": list(report.truncated_rows)}
    counts = {"dropped": dict(report.dropped), "remarks": dict(report.remarks)}
    return replace(report, **counts, dropped_rows=rows, remark_rows=remarked, **lists)
