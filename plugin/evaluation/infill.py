"""Infilling: the holes of a text, filled from both sides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..base.errors import data_error
from ..data.sources import Row
from .figures import figure, ratio, share
from .scorer import Broken, CheckedRows, How, Scored, read_items, text_in
from .subject import Asked, Ids, Subject

_HOLE = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)


@dataclass(frozen=True)
class Holed:
    """A text and the spans of its characters that are hidden."""

    row: str
    text: str
    spans: tuple[tuple[int, int], ...]


def read_infill(file: str, how: How) -> CheckedRows:
    """Read rows whose column `text` marks what to fill in: `The sky is [[blue]] today.`"""
    items, count = read_items(file, how.limit, _holed)
    return CheckedRows(count, partial(_score, items, count))


def _holed(row: Row) -> Holed:
    marked, text, spans = text_in(row, "text"), "", list[tuple[int, int]]()
    pieces = _HOLE.split(marked)  # text and holes in turn
    for place, piece in enumerate(pieces):
        if place % 2:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    if not spans:
        raise Broken("a text with a hole, written as [[what it holds]]")
    return Holed(row.id, text, tuple(spans))


def holed_ids(subject: Subject, one: Holed) -> tuple[Ids, NDArray[np.int64]]:
    """Return the ids of a text as it is trained on, and the places of its holes.

    A token that a hole shares with the text around it belongs to the hole. Raises JobError (exit
    3) for a hole that no family can fill: at the first token of a document.
    """
    chat = subject.chat
    found = chat.tokenizer(one.text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array([*chat.opening, *found["input_ids"], chat.fill_id], np.int32)
    inside = [
        any(first < end and last > start for start, end in one.spans)
        for first, last in found["offset_mapping"]
    ]
    holes = np.flatnonzero(inside) + len(chat.opening)
    if chat.spells_token(one.text):
        raise data_error("tasks", "a text that spells no special token", one.row)
    if not holes.size or holes[0] == 0:
        expected = "a hole behind the first token of a document"
        raise data_error("tasks", expected, f"{one.row}, whose hole is the first one or empty")
    return ids, holes


def filled(subject: Subject, items: list[Holed]) -> list[tuple[list[int], list[int]]]:
    """Return (ids that were filled in, true ids) of each text's holes."""
    documents = [holed_ids(subject, one) for one in items]
    asked = [
        Asked(row=one.row, ids=ids, holes=holes)
        for one, (ids, holes) in zip(items, documents, strict=True)
    ]
    return [
        (answer.ids, ids[holes].tolist())
        for answer, (ids, holes) in zip(subject.answers(asked), documents, strict=True)
    ]


def _score(items: list[Holed], count: int, subject: Subject) -> Scored:
    pairs = filled(subject, items)
    right = [
        (float(np.count_nonzero(np.equal(got, true))), float(len(true))) for got, true in pairs
    ]
    return Scored(
        figures={
            "exact_match": share([got == true for got, true in pairs]),
            "token_accuracy": figure(
                *ratio(right), least=0.0, most=1.0, n=int(sum(b for _, b in right))
            ),
        },
        rows=len(items),
        of=count,
        protocol={
            "holes": "as many masks as the true text has tokens",
            "steps": subject.sampler.steps,
            "block_length": subject.sampler.block_length,
        },
    )
