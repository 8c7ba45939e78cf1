"""Perplexity of texts by slices of time: per token, an upper bound, with its interval."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..data.sources import Row
from ..run.evaluation import NORMAL_95
from .figures import Figure, ratio
from .scorer import Broken, CheckedRows, How, Scored, read_items, text_in
from .subject import Continuation, Ids, Subject

_DATE = re.compile(r"(\d{4})(?:-(\d{2}))?(?!\d)")
UNDATED = "all"


@dataclass(frozen=True)
class Dated:
    row: str
    text: str
    slice: str


def read_perplexity(file: str, how: How) -> CheckedRows:
    """Read rows {date, text}; without a date, all rows are one slice."""
    items, count = read_items(file, how.limit, partial(_dated, how.slices), text_rows="file")
    return CheckedRows(count, partial(_score, items, count, how))


def _dated(slices: str, row: Row) -> Dated:
    text, date = text_in(row, "text"), row.values.get("date")
    if date is None:
        return Dated(row.id, text, UNDATED)
    found = _DATE.match(str(date))
    if not found or (slices == "month" and not found[2]):
        form = "YYYY-MM" if slices == "month" else "YYYY"
        raise Broken(f"a date that begins with {form}")
    return Dated(row.id, text, f"{found[1]}-{found[2]}" if slices == "month" else found[1])


def windows(ids: Ids, start_id: int | None, length: int) -> list[tuple[Ids, Ids]]:
    """Return (context, continuation) of windows of at most `length` tokens: each token once.

    Each window opens as a document does; behind the first one, it also shows the token before.
    """
    opening = np.array([] if start_id is None else [start_id], np.int32)
    found: list[tuple[Ids, Ids]] = []
    at = 0
    while at < ids.size:
        context = np.concatenate([opening, ids[max(0, at - 1) : at]])
        room = length - context.size
        found.append((context, ids[at : at + room]))
        at += room
    return found


def _score(items: list[Dated], count: int, how: How, subject: Subject) -> Scored:
    length = max(3, min(how.max_length, subject.positions))
    texts: list[Continuation] = []
    owner: list[int] = []
    all_ids = subject.chat.plain_ids([one.text for one in items])
    for place, (one, ids) in enumerate(zip(items, all_ids, strict=True)):
        for context, rest in windows(np.array(ids, np.int32), subject.chat.start_id, length):
            texts.append(Continuation(row=one.row, context=context, continuation=rest))
            owner.append(place)
    sums = np.zeros((len(items), 3))  # nats, tokens, variance of the draws
    for place, found in zip(owner, subject.scores(texts), strict=True):
        sums[place] += (-found.value, found.tokens, (found.stderr or 0.0) ** 2)
    names = sorted({one.slice for one in items})
    figures = {
        f"perplexity/{name}" if name != UNDATED else "perplexity": _perplexity(
            sums[[place for place, one in enumerate(items) if one.slice == name]]
        )
        for name in names
    }
    return Scored(
        figures=figures,
        rows=len(items),
        of=count,
        protocol={
            "window": length,
            "unit": "a token of the model's tokenizer",
            "bound": "from above" if subject.likelihood.estimator == "monte_carlo" else "none",
            "slices": how.slices,
        },
    )


def _perplexity(rows: np.ndarray) -> Figure:
    """Return exp(nats per token); the interval is that of the exponent.

    Its variance is that between the rows, which holds that of the draws; of a single row it is that
    of the draws alone. One that draws nothing, or once, has none.
    """
    nats, spread = ratio([(row[0], row[1]) for row in rows])
    if spread is None:
        spread = math.sqrt(rows[0, 2]) / rows[0, 1] or None
    value = math.exp(nats)
    interval = (
        [math.exp(nats - NORMAL_95 * spread), math.exp(nats + NORMAL_95 * spread)]
        if spread
        else None
    )
    return {
        "value": value,
        "stderr": None if spread is None else value * spread,
        "ci95": interval,
        "nats_per_token": nats,
        "tokens": int(rows[:, 1].sum()),
        "n": len(rows),
    }
