"""Tokenised documents of a split, with a report of truncated, dropped and remarkable rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ..base.errors import JobError, data_error
from .bulk_tokenizer import BulkTokenizer
from .chat import ChatFormat, Encoded, supervision
from .documents import Builder, Document, Documents
from .formats import Example, RowResult
from .seen import Seen, with_noun
from .turns import Turn, random_prefix

CHUNK = 1024  # rows tokenised in one call
CHARACTERS = 1 << 24  # a call ends with the row that passes this many characters
EXAMPLES = 3  # row ids quoted for a reason
# Reasons listed in a report. A chat template may word another reason for every row, and fill the
# disk with them.
REASONS = 40


@dataclass(frozen=True)
class Encoding:
    """Rules that turn examples into documents."""

    max_length: int
    truncation: str = "right"  # right: keep the first tokens; filter: drop
    answers_only: bool = True
    turns: str = "last"
    seed: int = 0  # for random_prefix
    stage: str = "sft"
    insert_eos: bool = True


@dataclass
class SplitReport:
    """Counts of the rows of one split: documents, truncated, dropped, remarked."""

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
    lengths: list[int] = field(default_factory=list)  # tokens before truncation
    shortest_prompt: int | None = None

    def drop(self, reason: str, row: str) -> None:
        """Count a dropped row."""
        _count(reason, row, self.dropped, self.dropped_rows)

    def remark(self, remark: str, row: str) -> None:
        """Count a row with something that a person should know."""
        _count(remark, row, self.remarks, self.remark_rows)

    def lines(self) -> list[str]:
        """Write the remarks, one line each."""
        return [
            f"{with_noun(count, 'row')}, such as {', '.join(self.remark_rows[remark])}: {remark}"
            for remark, count in self.remarks.items()
        ]

    def truncate(self, row: str) -> None:
        """Count a row whose document was truncated."""
        self.truncated += 1
        if len(self.truncated_rows) < EXAMPLES:
            self.truncated_rows.append(row)

    def as_json(self) -> dict[str, object]:
        """Return the counts, shares and length histogram as JSON values."""
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
    examples: Iterable[RowResult],
    chat: ChatFormat,
    how: Encoding,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[Documents, SplitReport]:
    """Tokenise one split. Returns its documents and the report of its rows."""
    builder, report = Builder(), SplitReport()
    bulk = BulkTokenizer(chat, log) if how.stage == "pretrain" else None
    stream = iter(examples)
    while chunk := _chunk(stream):
        for example, documents in zip(
            chunk, encode_rows(chunk, chat, how, report, bulk), strict=True
        ):
            for document in documents:
                builder.add(document.ids, document.supervised, document.prompt, example.row)
    documents = builder.build()
    report.documents, report.tokens = len(documents), documents.ids.size
    report.supervised = int(np.count_nonzero(documents.supervised))
    return documents, report


def _chunk(stream: Iterator[RowResult]) -> list[RowResult]:
    """Take the next rows: at most CHUNK, and no more once they have CHARACTERS characters."""
    taken: list[RowResult] = []
    characters = 0
    for example in islice(stream, CHUNK):
        taken.append(example)
        characters += character_count(example)
        if characters >= CHARACTERS:
            break
    return taken


def character_count(example: RowResult) -> int:
    """Count the characters of a row's turns; a dropped row has none."""
    return sum(len(turn.text) for turn in example.turns) if isinstance(example, Example) else 0


def encode_rows(
    rows: Sequence[RowResult],
    chat: ChatFormat,
    how: Encoding,
    report: SplitReport,
    bulk: BulkTokenizer | None = None,
) -> list[list[Document]]:
    """Tokenise rows in one call; `bulk` encodes rows that are plain texts.

    Returns the documents of each row: none for a dropped row, several for a long text, with indices
    from 0 in each row. Adds the rows to `report`; the caller counts documents and tokens.
    """
    report.rows += len(rows)
    dialogues = [_dialogue(example, how) for example in rows if isinstance(example, Example)]
    encoded = iter(_encoded(dialogues, chat, how, bulk))
    found: list[list[Document]] = []
    for example in rows:
        result = next(encoded) if isinstance(example, Example) else example.reason
        if isinstance(result, str):
            report.drop(result, example.row)
            found.append([])
            continue
        for remark in result.remarks:
            report.remark(remark, example.row)
        found.append(_documents(result, example.row, chat, how, report))
    return found


def _encoded(
    dialogues: Sequence[Sequence[Turn]], chat: ChatFormat, how: Encoding, bulk: BulkTokenizer | None
) -> Sequence[Encoded | str]:
    if bulk and all(len(turns) == 1 and turns[0].role == "text" for turns in dialogues):
        texts = [turns[0].text for turns in dialogues]
        return chat.encode_texts(texts, bulk.encode(texts)) if texts else []
    find = "all" if how.turns == "all" else "last" if how.answers_only else "marked"
    return chat.encode(dialogues, find=find)


def _dialogue(example: Example, how: Encoding) -> Sequence[Turn]:
    """Choose the turns of a row that become its document."""
    if how.turns != "random_prefix":
        return example.turns
    key = how.seed.to_bytes(8, "big")
    digest = hashlib.blake2b(example.row.encode(), digest_size=7, key=key).digest()
    return random_prefix(example.turns, int.from_bytes(digest, "big") / 2**56)


def _documents(
    encoded: Encoded, row: str, chat: ChatFormat, how: Encoding, report: SplitReport
) -> list[Document]:
    ids, length = encoded.ids, encoded.ids.size
    report.lengths.append(length)
    if encoded.answers:
        prompt = encoded.answers[-1][0]
        report.shortest_prompt = min(prompt, report.shortest_prompt or prompt)
    if how.stage == "pretrain":
        return split_text(ids[len(chat.opening) : -1], row, chat, how, report)
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
        report.truncate(row)
    prompt = encoded.answers[-1][0] if encoded.answers else 1
    return [Document(ids, learned, min(prompt, ids.size - 1), 0)]


def split_text(
    tokens: np.ndarray, row: str, chat: ChatFormat, how: Encoding, report: SplitReport
) -> list[Document]:
    """Split the tokens of a text, without start and end token, into documents of `max_length`.

    Each is opened by the start token, the last is ended if `insert_eos`; no token is dropped.
    """
    opening = np.array(chat.opening, dtype=np.int32)
    body = np.append(tokens, chat.fill_id) if how.insert_eos else tokens
    body, size = body.astype(np.int32), text_room(chat, how)
    if not body.size:
        report.drop("nothing left after tokenising", row)
    documents: list[Document] = []
    for number, start in enumerate(range(0, body.size, size)):
        tokens = np.concatenate([opening, body[start : start + size]])
        learned = np.ones(tokens.size, dtype=bool)
        learned[: max(1, opening.size)] = False  # a document's first token is never masked
        documents.append(Document(tokens, learned, opening.size, number))
    return documents


def text_room(chat: ChatFormat, how: Encoding) -> int:
    """Return the tokens of a document behind its start token. Raises JobError (exit 3) if none."""
    size = how.max_length - len(chat.opening)
    if size < 1:
        got, fix = str(how.max_length), "Raise max_length."
        raise data_error("max_length", "at least 2 tokens", got, fix)
    return size


def check_trainable(
    report: SplitReport, dataset: str, max_length: int, seen: Seen | None = None
) -> None:
    """Raise JobError (exit 3) if a split has no supervised token.

    The error names the field to change and, from `seen`, the content of the dropped rows.
    """
    if report.supervised:
        return
    raise _nothing_left(report, dataset, max_length, seen or Seen())


def _nothing_left(report: SplitReport, dataset: str, max_length: int, seen: Seen) -> JobError:
    if report.rows == 0:
        return data_error("dataset_name", "at least one row", f"{dataset}, which has none")
    reasons = "; ".join(
        f"{count} x {_why(reason, seen)}" for reason, count in report.dropped.items()
    )
    if report.shortest_prompt is not None and report.shortest_prompt >= max_length:
        wanted = f"more than the shortest prompt's {report.shortest_prompt} tokens"
        got = f"{max_length}, so no answer token is left"
        return data_error("max_length", wanted, got, "Raise max_length.")
    if any("max_length" in reason for reason in report.dropped):
        got = f"{max_length}: {reasons}"
        return data_error("max_length", "documents that fit", got, "Raise max_length.")
    got = f"{dataset}: {reasons or 'no supervised tokens'}"
    return data_error("dataset_name", "rows with something to learn", got)


def _why(reason: str, seen: Seen) -> str:
    why = seen.why(reason)
    return why if why.startswith(reason) else f"{reason}: {why}"
