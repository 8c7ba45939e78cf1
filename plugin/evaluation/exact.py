"""Exact match: the share of rows whose answer is, letter by letter, that of the file."""

from __future__ import annotations

from functools import partial

from ..base.errors import renamed_field
from ..data.formats import Dropped, Format, detect_format, read_example
from ..data.sources import Row
from ..data.turns import Turn
from .figures import share
from .scorer import Broken, CheckedRows, How, Scored, prompt_ids, read_items, respelled, sampling_of
from .subject import Asked, Subject

Pair = tuple[str, tuple[Turn, ...]]  # row id, turns


def read_exact(file: str, how: How) -> CheckedRows:
    formats: dict[tuple[str, ...], Format] = {}

    def turns(row: Row) -> Pair:
        columns = tuple(row.values)
        if columns not in formats:
            with renamed_field("dataset_name", "tasks"):
                formats[columns] = detect_format(columns, None, "text", "sft")[0]
        found = read_example(row, formats[columns])
        if isinstance(found, Dropped):
            raise Broken(f"a usable row ({found.reason})")
        if found.turns[-1].role != "assistant":
            raise Broken("a row with a prompt and its response")
        return row.id, found.turns

    pairs, count = read_items(file, how.limit, turns)
    return CheckedRows(count, partial(_score, pairs, count))


def _score(pairs: list[Pair], count: int, subject: Subject) -> Scored:
    asked = [Asked(row=row, ids=prompt_ids(subject, turns[:-1])) for row, turns in pairs]
    texts = [subject.chat.decode(one.ids) for one in subject.answers(asked)]
    wanted = [respelled(subject, turns[-1].with_thought) for _, turns in pairs]
    right = [one == other for one, other in zip(texts, wanted, strict=True)]
    protocol = {"template": "chat", "match": "whole text, spaces around it left out"}
    return Scored(
        figures={"exact_match": share(right)},
        rows=len(pairs),
        of=count,
        protocol=protocol | sampling_of(subject),
    )
