"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): numeric equality of the final answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial

import numpy as np

from ..base.errors import data_error
from ..data.sources import Row
from ..data.turns import Turn
from .figures import share
from .scorer import Broken, CheckedRows, How, Scored, prompt_ids, read_items, sampling_of, text_in
from .subject import Asked, Ids, Subject

_FINAL = re.compile(r"####\s*\$?\s*(-?\s?[\d.,]*\d)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_NEXT = "\nQuestion:"  # ends an answer without a chat template


@dataclass(frozen=True)
class Solved:
    """A question, its worked answer and the final number."""

    row: str
    question: str
    answer: str
    number: Decimal


def final_number(text: str) -> Decimal | None:
    """Return the number of the last `#### n`; None without one."""
    found = _FINAL.findall(text)
    return _decimal(found[-1]) if found else None


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, wherever it stands; None without one."""
    found = _NUMBER.findall(text)
    return _decimal(found[-1]) if found else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[,$\s]", "", text))
    except InvalidOperation:
        return None


def read_gsm8k(file: str, how: How) -> CheckedRows:
    shown = how.num_fewshot or 0
    if how.shots or not shown:
        shots = read_items(how.shots, shown, _example)[0] if shown else []
        examples, count = read_items(file, how.limit, _example)
    else:  # the first rows of the scored file are shown and not scored
        limit = None if how.limit is None else how.limit + shown
        both, count = read_items(file, limit, _example)
        shots, examples, count = both[:shown], both[shown:], count - shown
        if not examples:
            got = f"{len(both)} in {file}, of which num_fewshot shows {shown}"
            raise data_error("tasks", "rows to score", got)
    return CheckedRows(count, partial(_score, shots, examples, count, how))


def _example(row: Row) -> Solved:
    question, answer = text_in(row, "question"), text_in(row, "answer")
    number = final_number(answer)
    if number is None:
        raise Broken("an answer that ends with #### and a number")
    return Solved(row.id, question, answer, number)


def _score(
    shots: Sequence[Solved], examples: Sequence[Solved], count: int, how: How, subject: Subject
) -> Scored:
    asked = [
        Asked(row=one.row, ids=_prompt(subject, shots, one, template=how.template))
        for one in examples
    ]
    texts = [_text(subject, one.ids, how) for one in subject.answers(asked)]
    pairs = list(zip(examples, texts, strict=True))
    return Scored(
        figures={
            "exact_match": share([final_number(text) == one.number for one, text in pairs]),
            "flexible": share([last_number(text) == one.number for one, text in pairs]),
        },
        rows=len(examples),
        of=count,
        protocol={
            "shots": len(shots),
            "template": "chat" if how.template else "Question:/Answer:",
            "filter": "exact_match: the last '#### n'; flexible: the last number",
            "equality": "numeric",
            **sampling_of(subject),
        },
    )


def _prompt(subject: Subject, shots: Sequence[Solved], one: Solved, *, template: bool) -> Ids:
    chat = subject.chat
    if template:
        turns = [
            turn
            for shot in shots
            for turn in (Turn("user", shot.question), Turn("assistant", shot.answer))
        ]
        return prompt_ids(subject, [*turns, Turn("user", one.question)])
    before = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    (ids,) = chat.plain_ids([f"{before}Question: {one.question}\nAnswer:"])
    return np.array([*chat.opening, *ids], np.int32)


def _text(subject: Subject, ids: list[int], how: How) -> str:
    text = subject.chat.decode(ids)
    return text if how.template else text.partition(_NEXT)[0]
