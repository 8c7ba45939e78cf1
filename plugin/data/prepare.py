"""From rows to tokenised documents, with a report of everything cut, dropped or worth a remark on
the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ..base.errors import JobError, data_error
from .chat import ChatFormat, Encoded, supervision
from .documents import Builder, Document, Documents
from .layouts import Example
from .seen import Seen, counted
from .turns import Turn, random_prefix

CHUNK = 1024  # examples tokenised in one call
CHARACTERS = 1 << 24  # of them, but for the last one
EXAMPLES = 3  # row ids quoted per reason
REASONS = (
    40  # told apart in a report: a template may word one for every row, and fill the disk with them
)


@dataclass(frozen=True)
class Encoding:
    """How examples become documents."""

    max_length: int
    truncation: str = "right"  # right: keep the first tokens; filter: drop
    answers_only: bool = True
    turns: str = "last"
    seed: int = 0  # of random_prefix
    stage: str = "sft"
    insert_eos: bool = True


@dataclass
class Report:
    """What became of the rows of one split."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    truncated_rows: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows
    dropped_rows: dict[str, list[str]] = field(default_factory=dict)  # reason -> a few row ids
    remarks: dict[str, int] = field(default_factory=dict)  # remark -> rows
    remark_rows: dict[str, list[str]] = field(default_factory=dict)  # remark -> a few row ids
    lengths: list[int] = field(default_factory=list)  # before truncation
    shortest_prompt: int | None = None

    def drop(self, reason: str, row: str) -> None:
        _count(reason, row, self.dropped, self.dropped_rows)

    def remark(self, remark: str, row: str) -> None:
        _count(remark, row, self.remarks, self.remark_rows)

    def lines(self) -> list[str]:
        """Write the remarks, one line each."""
        rows = (
            (remark, count, ", ".join(self.remark_rows[remark]))
            for remark, count in self.remarks.items()
        )
        return [
            f"{counted(count, 'row')}, such as {some}: {remark}" for remark, count, some in rows
        ]

    def cut(self, row: str) -> None:
        self.truncated += 1
        if len(self.truncated_rows) < EXAMPLES:
            self.truncated_rows.append(row)

    def as_json(self) -> dict[str, object]:
        lengths = np.array(self.lengths or [0])
        percentiles = {
            f"p{share}": int(np.ceil(np.percentile(lengths, share))) for share in (50, 95, 99)
        }
        counts, edges = np.histogram(lengths, bins=min(16, max(1, int(lengths.max()))))
        return {
            "rows": self.rows,
            "documents": self.documents,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "truncated": self.truncated,
            "truncated_percent": round(100 * self.truncated / max(1, self.rows), 2),
            "truncated_rows": self.truncated_rows,
            "dropped": self.dropped,
            "dropped_percent": round(100 * sum(self.dropped.values()) / max(1, self.rows), 2),
            "dropped_rows": self.dropped_rows,
            "remarks": self.remarks,
            "remark_rows": self.remark_rows,
            "length": {
                **percentiles,
                "longest": int(lengths.max()),
                "counts": counts.tolist(),
                "edges": edges.round(1).tolist(),
            },
        }


def _count(reason: str, row: str, counts: dict[str, int], rows: dict[str, list[str]]) -> None:
    if reason not in counts and len(counts) >= REASONS:
        reason = "one more reason"
    counts[reason] = counts.get(reason, 0) + 1
    some = rows.setdefault(reason, [])
    if len(some) < EXAMPLES:
        some.append(row)


def encode_split(
    examples: Iterable[tuple[str, Example | str]], chat: ChatFormat, how: Encoding
) -> tuple[Documents, Report]:
    """Tokenise one split and report what was cut or dropped."""
    builder, report = Builder(), Report()
    stream = iter(examples)
    while chunk := _chunk(stream):
        for (row, _), documents in zip(chunk, encode_rows(chunk, chat, how, report), strict=True):
            for one in documents:
                builder.add(one.ids, one.supervised, one.prompt, row)
    documents = builder.build()
    report.documents, report.tokens = len(documents), documents.ids.size
    report.supervised = int(np.count_nonzero(documents.supervised))
    return documents, report


def _chunk(stream: Iterator[tuple[str, Example | str]]) -> list[tuple[str, Example | str]]:
    """Take CHUNK examples, or as many as have CHARACTERS."""
    taken: list[tuple[str, Example | str]] = []
    characters = 0
    for row, example in islice(stream, CHUNK):
        taken.append((row, example))
        characters += (
            sum(len(turn.text) for turn in example.turns) if isinstance(example, Example) else 0
        )
        if characters >= CHARACTERS:
            break
    return taken


def encode_rows(
    rows: Sequence[tuple[str, Example | str]], chat: ChatFormat, how: Encoding, report: Report
) -> list[list[Document]]:
    """The documents of each row, tokenised in one call: none of a dropped row, several of a long
    text, numbered from 0 in each.

    What became of the rows is added to `report`; what the documents hold is the caller's to count.
    """
    report.rows += len(rows)
    dialogues = [
        _dialogue(row, example, how) for row, example in rows if isinstance(example, Example)
    ]
    find = "all" if how.turns == "all" else "last" if how.answers_only else "marked"
    encoded = iter(chat.encode(dialogues, find=find))
    found: list[list[Document]] = []
    for row, example in rows:
        one = next(encoded) if isinstance(example, Example) else example
        if isinstance(one, str):
            report.drop(one, row)
            found.append([])
            continue
        for remark in one.remarks:
            report.remark(remark, row)
        found.append(_documents(one, row, chat, how, report))
    return found


def _dialogue(row: str, example: Example, how: Encoding) -> Sequence[Turn]:
    """Choose the turns of a row that become its document."""
    if how.turns != "random_prefix":
        return example.turns
    key = hashlib.blake2b(row.encode(), digest_size=7, key=how.seed.to_bytes(8, "big")).digest()
    return random_prefix(example.turns, int.from_bytes(key, "big") / 2**56)


def _documents(
    encoded: Encoded, row: str, chat: ChatFormat, how: Encoding, report: Report
) -> list[Document]:
    ids, length = encoded.ids, encoded.ids.size
    report.lengths.append(length)
    if encoded.answers:
        prompt = encoded.answers[-1][0]
        report.shortest_prompt = min(prompt, report.shortest_prompt or prompt)
    if how.stage == "pretrain":
        return _pieces(ids, row, chat, how, report)
    learned = supervision(encoded, answers_only=how.answers_only, turns=how.turns)
    if length > how.max_length:
        if how.truncation == "filter":
            report.drop("longer than max_length", row)
            return []
        ids, learned = ids[: how.max_length], learned[: how.max_length]
    if not learned.any():
        report.drop("prompt leaves no room for an answer within max_length", row)
        return []
    if length > how.max_length:
        report.cut(row)
    prompt = encoded.answers[-1][0] if encoded.answers else 1
    return [Document(ids, learned, min(prompt, ids.size - 1), 0)]


def _pieces(
    ids: np.ndarray, row: str, chat: ChatFormat, how: Encoding, report: Report
) -> list[Document]:
    """Pretraining cuts nothing off: a long text becomes several documents, each opened by the start
    token.
    """
    body = ids[:-1] if not how.insert_eos else ids
    opening = body[:1] if chat.start_id is not None else body[:0]
    body = body[opening.size :]
    size = how.max_length - opening.size
    if size < 1:
        raise data_error(
            "max_length", "at least 2 tokens", str(how.max_length), "Raise max_length."
        )
    if not body.size:
        report.drop("nothing left after tokenising", row)
    pieces: list[Document] = []
    for number, start in enumerate(range(0, body.size, size)):
        piece = np.concatenate([opening, body[start : start + size]])
        learned = np.ones(piece.size, dtype=bool)
        learned[: max(1, opening.size)] = False  # a document's first token is never masked
        pieces.append(Document(piece, learned, opening.size, number))
    return pieces


def check_trainable(
    report: Report, dataset: str, max_length: int, seen: Seen | None = None
) -> None:
    """Raises JobError (exit 3) when nothing is left to learn from, naming the field that a user
    should change and, from `seen`, what the dropped rows hold.
    """
    if report.supervised:
        return
    raise _nothing_left(report, dataset, max_length, seen or Seen())


def _nothing_left(report: Report, dataset: str, max_length: int, seen: Seen) -> JobError:
    if report.rows == 0:
        return data_error("dataset_name", "at least one row", f"{dataset}, which has none")
    reasons = "; ".join(
        f"{count} x {_why(reason, seen)}" for reason, count in report.dropped.items()
    )
    if report.shortest_prompt is not None and report.shortest_prompt >= max_length:
        wanted = f"more than the shortest prompt's {report.shortest_prompt} tokens"
        return data_error(
            "max_length", wanted, f"{max_length}, so no answer token is left", "Raise max_length."
        )
    if any("max_length" in reason for reason in report.dropped):
        return data_error(
            "max_length", "documents that fit", f"{max_length}: {reasons}", "Raise max_length."
        )
    return data_error(
        "dataset_name",
        "rows with something to learn",
        f"{dataset}: {reasons or 'no supervised tokens'}",
    )


def _why(reason: str, seen: Seen) -> str:
    why = seen.why(reason)
    return why if why.startswith(reason) else f"{reason}: {why}"
