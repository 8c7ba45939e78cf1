"""From rows to the two splits of tokenised documents, with a report of everything cut or dropped on the way.

Rows stream twice: once for the split (which prompts are held out), once to be tokenised. Nothing but tokens stays in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ..job import JobError, data_error
from .chat import ChatFormat, Encoded, random_prefix, supervision
from .documents import Builder, Document, Documents
from .layouts import Example

EVAL_SHARE = 0.1
CHUNK = 1024  # examples tokenised in one call
EXAMPLES = 3  # row ids quoted per reason
IN_EVAL_SPLIT = "prompt also in the eval split"

# A split's examples, as often as asked; a string instead of an Example says why the row is unusable.
Reader = Callable[[str], Iterable[tuple[str, Example | str]]]


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
    lengths: list[int] = field(default_factory=list)  # before truncation
    shortest_prompt: int | None = None

    def drop(self, reason: str, row: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        some = self.dropped_rows.setdefault(reason, [])
        if len(some) < EXAMPLES:
            some.append(row)

    def cut(self, row: str) -> None:
        self.truncated += 1
        if len(self.truncated_rows) < EXAMPLES:
            self.truncated_rows.append(row)

    def as_json(self) -> dict[str, object]:
        lengths = np.array(self.lengths or [0])
        percentiles = {f"p{share}": int(np.ceil(np.percentile(lengths, share))) for share in (50, 95, 99)}
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
            "length": {
                **percentiles,
                "longest": int(lengths.max()),
                "counts": counts.tolist(),
                "edges": edges.round(1).tolist(),
            },
        }


@dataclass(frozen=True)
class HeldOut:
    """Which prompts are evaluation's. `own_files`: the dataset has an eval split of its own."""

    keys: frozenset[int]
    own_files: bool


def prompt_key(example: Example, seed: int) -> int:
    """A seeded 64-bit key of everything before the last answer (of the whole text, for a text)."""
    turns = example.turns[:-1] if len(example.turns) > 1 else example.turns
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "big"))
    for turn in turns:
        digest.update(f"{turn.role}\0{turn.text}\0".encode())
    return int.from_bytes(digest.digest(), "big")


def hold_out(read: Reader, own_files: bool, seed: int) -> HeldOut:
    """Choose the evaluation prompts: the dataset's own eval files, else a seeded tenth of the prompts (none of a single one)."""
    keys = {prompt_key(example, seed) for _, example in read("eval" if own_files else "train") if isinstance(example, Example)}
    if own_files:
        return HeldOut(frozenset(keys), True)
    count = max(1, round(len(keys) * EVAL_SHARE)) if len(keys) > 1 else 0
    return HeldOut(frozenset(sorted(keys)[:count]), False)  # keys are seeded hashes: their order is a random one


def split_examples(read: Reader, held: HeldOut, split: str, seed: int) -> Iterator[tuple[str, Example | str]]:
    """The examples of one split; nothing is in both. A train row whose prompt is held out by its own files counts as dropped."""
    for row, example in read(split if held.own_files else "train"):
        if isinstance(example, str):
            if split == "train" or held.own_files:  # a row without a prompt belongs to train's report
                yield row, example
            continue
        is_held = prompt_key(example, seed) in held.keys
        if held.own_files and split == "train" and is_held:
            yield row, IN_EVAL_SPLIT
        elif is_held == (split == "eval"):
            yield row, example


def encode_split(examples: Iterable[tuple[str, Example | str]], chat: ChatFormat, how: Encoding) -> tuple[Documents, Report]:
    """Tokenise one split and report what was cut or dropped."""
    builder, report = Builder(), Report()
    stream = iter(examples)
    while chunk := list(islice(stream, CHUNK)):
        for (row, _), documents in zip(chunk, encode_rows(chunk, chat, how, report), strict=True):
            for one in documents:
                builder.add(one.ids, one.supervised, one.prompt, row)
    documents = builder.build()
    report.documents, report.tokens = len(documents), documents.ids.size
    report.supervised = int(np.count_nonzero(documents.supervised))
    return documents, report


def encode_rows(
    rows: Sequence[tuple[str, Example | str]], chat: ChatFormat, how: Encoding, report: Report
) -> list[list[Document]]:
    """The documents of each row, tokenised in one call: none of a dropped row, several of a long text, numbered from 0 in each.

    What became of the rows is added to `report`; what the documents hold is the caller's to count.
    """
    report.rows += len(rows)
    encoded = iter(chat.encode([example.turns for _, example in rows if isinstance(example, Example)]))
    found: list[list[Document]] = []
    for row, example in rows:
        if isinstance(example, str):
            report.drop(example, row)
            found.append([])
        else:
            found.append(_documents(next(encoded), row, chat, how, report))
    return found


def _documents(encoded: Encoded, row: str, chat: ChatFormat, how: Encoding, report: Report) -> list[Document]:
    if how.turns == "random_prefix":
        key = hashlib.blake2b(row.encode(), digest_size=7, key=how.seed.to_bytes(8, "big")).digest()
        encoded = random_prefix(encoded, int.from_bytes(key, "big") / 2**56)
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


def _pieces(ids: np.ndarray, row: str, chat: ChatFormat, how: Encoding, report: Report) -> list[Document]:
    """Pretraining cuts nothing off: a long text becomes several documents, each opened by the start token."""
    body = ids[:-1] if not how.insert_eos else ids
    opening = body[:1] if chat.start_id is not None else body[:0]
    body = body[opening.size :]
    size = how.max_length - opening.size
    if size < 1:
        raise data_error("max_length", "at least 2 tokens", str(how.max_length), "Raise max_length.")
    if not body.size:
        report.drop("nothing left after tokenising", row)
    pieces: list[Document] = []
    for number, start in enumerate(range(0, body.size, size)):
        piece = np.concatenate([opening, body[start : start + size]])
        learned = np.ones(piece.size, dtype=bool)
        learned[: max(1, opening.size)] = False  # a document's first token is never masked
        pieces.append(Document(piece, learned, opening.size, number))
    return pieces


def check_trainable(report: Report, dataset: str, max_length: int) -> None:
    """Raises JobError (exit 3) when nothing is left to learn from, naming the field that a user should change."""
    if report.supervised:
        return
    raise _nothing_left(report, dataset, max_length)


def _nothing_left(report: Report, dataset: str, max_length: int) -> JobError:
    if report.rows == 0:
        return data_error("dataset_name", "at least one row", f"{dataset}, which has none")
    reasons = ", ".join(f"{count} x {reason}" for reason, count in report.dropped.items())
    if report.shortest_prompt is not None and report.shortest_prompt >= max_length:
        wanted = f"more than the shortest prompt's {report.shortest_prompt} tokens"
        return data_error("max_length", wanted, f"{max_length}, so no answer token is left", "Raise max_length.")
    if any("max_length" in reason for reason in report.dropped):
        return data_error("max_length", "documents that fit", f"{max_length}: {reasons}", "Raise max_length.")
    return data_error("dataset_name", "rows with something to learn", f"{dataset}: {reasons or 'no supervised tokens'}")
