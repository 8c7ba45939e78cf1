"""Reverse curse (Berglund et al. 2023, arXiv 2309.12288): a fact asked for in both directions.

CheckedRows hold a name and a description. Forward, the model reads the name and writes the description;
backward, it fills in the name before the description, as many masks as the name has tokens. A block
model, which sees nothing behind a block, is asked forward alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ..data.sources import Row
from ..data.turns import Turn
from .figures import share
from .infill import Holed, holed_ids
from .scorer import (
    CheckedRows,
    How,
    Scored,
    prompt_ids,
    read_items,
    respelled,
    sampling_of,
    text_in,
)
from .subject import Asked, Ids, Subject

# Names in whose place a chat is rendered again, to find the tokens of the real one.
_OTHERS = ("0", "zq Xw")


@dataclass(frozen=True)
class Fact:
    row: str
    name: str
    description: str


def read_reverse(file: str, how: How) -> CheckedRows:
    facts, count = read_items(file, how.limit, _fact)
    return CheckedRows(count, partial(_score, facts, count, how))


def _fact(row: Row) -> Fact:
    return Fact(row.id, text_in(row, "name").strip(), text_in(row, "description").strip())


def _score(facts: list[Fact], count: int, how: How, subject: Subject) -> Scored:
    chat = subject.chat
    forward = [Asked(row=one.row, ids=_forward(subject, one, how)) for one in facts]
    described = [chat.decode(one.ids) for one in subject.answers(forward)]
    wanted = [respelled(subject, one.description) for one in facts]
    figures = {"forward": share([b in a for a, b in zip(described, wanted, strict=True)])}
    if subject.infills:
        backward = [_backward(subject, one, how) for one in facts]
        named = [chat.text(one.ids) for one in subject.answers(backward)]
        names = [respelled(subject, one.name) for one in facts]
        figures["reverse"] = share([b in a for a, b in zip(named, names, strict=True)])
    return Scored(
        figures=figures,
        rows=len(facts),
        of=count,
        protocol={
            "template": "chat" if how.template else "the name, a space, the description",
            "match": "substring",
            "reverse": (
                "the name's tokens are masked before the description"
                if subject.infills
                else "none: a block model sees nothing behind a block"
            ),
            **sampling_of(subject),
        },
    )


def _forward(subject: Subject, one: Fact, how: How) -> Ids:
    if how.template:
        return prompt_ids(subject, [Turn("user", one.name)])
    ids, holes = holed_ids(subject, _plain(one, name=False))
    return ids[: holes[0]]


def _backward(subject: Subject, one: Fact, how: How) -> Asked:
    if how.template:
        ids, holes = _in_chat(subject, one)
    else:
        ids, holes = holed_ids(subject, _plain(one, name=True))
    return Asked(row=one.row, ids=ids, holes=holes)


def _plain(one: Fact, *, name: bool) -> Holed:
    text, end = f"{one.name} {one.description}", len(one.name)
    return Holed(one.row, text, ((0, end) if name else (end + 1, len(text)),))


def _in_chat(subject: Subject, one: Fact) -> tuple[Ids, NDArray[np.int64]]:
    """Return a chat of name and description, and the places of the name: what another changes."""

    def ids(name: str) -> Ids:
        turns = [Turn("user", name), Turn("assistant", one.description)]
        (encoded,) = subject.chat.encode([turns])
        assert not isinstance(encoded, str), encoded  # the prompt alone was accepted before
        return encoded.ids

    own = ids(one.name)
    others = [ids(other) for other in _OTHERS]
    first = min(_shared(own, other) for other in others)
    last = min(_shared(own[::-1], other[::-1]) for other in others)
    return own, np.arange(first, own.size - last)


def _shared(one: Ids, other: Ids) -> int:
    pairs = zip(one.tolist(), other.tolist(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
