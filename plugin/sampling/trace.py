"""Steps of an answer: kept while it is denoised, written as lines of a trace.

A trace is JSONL, one object a step: {step, block, positions, ids, text, tokens}. The step after an
answer's last one begins the next answer. The first line of an infilling has `given` too: the texts
between its holes, which no step reveals. T tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import json_line
from ..data.chat import ChatFormat
from .request import DenoisingStep

Taken = tuple[DenoisingStep, NDArray[np.int32]]  # a step, and the answer after it with masks

_WINDOW = 32  # tokens that are decoded together, at least


def records(taken: Sequence[Taken], chat: ChatFormat) -> Iterator[dict[str, Any]]:
    """Yield the object of each step.

    `tokens` are the texts of `positions` as they read in the complete answer; of a token that a
    later step replaced, as it read then. A token behind the answer's end reads as nothing.
    """
    if not taken:
        return
    final = taken[-1][1].tolist()
    texts = token_texts(final, chat)
    given = _given(taken, final, texts, chat)
    for step, ids in taken:
        record = step.record(chat.frame(ids.tolist()))
        tokens = [texts[place] for place in step.positions]
        replaced = [
            n
            for n, (place, token) in enumerate(zip(step.positions, step.ids, strict=True))
            if final[place] != token
        ]
        if replaced:
            then = token_texts(ids.tolist(), chat)
            for n in replaced:
                tokens[n] = then[step.positions[n]]
        yield record | {"tokens": tokens} | ({"given": given} if given else {})
        given = []


def _given(
    taken: Sequence[Taken], final: list[int], texts: list[str], chat: ChatFormat
) -> list[tuple[int, str]]:
    """Return the (place, text) of all that no step reveals: the texts around the holes."""
    revealed = {place for step, _ in taken for place in step.positions}
    return [
        (place, text)
        for place, text in enumerate(texts)
        if place not in revealed and final[place] != chat.mask_id
    ]


def trace_lines(taken: Sequence[Taken], chat: ChatFormat) -> str:
    """Return the lines of an answer's trace."""
    return "".join(f"{json_line(record)}\n" for record in records(taken, chat))


def token_texts(ids: Sequence[int], chat: ChatFormat) -> list[str]:
    """Return the text of each token [T]; those of a run without masks join to the run's text.

    Masks, and what stands behind the end, are empty.
    """
    kept = chat.until_end(ids)
    texts: list[str] = []
    for masked, run in groupby(kept, lambda token: token == chat.mask_id):
        mine = list(run)
        texts += [""] * len(mine) if masked else _split(mine, chat)
    return texts + [""] * (len(ids) - len(texts))


def _split(ids: list[int], chat: ChatFormat) -> list[str]:
    """Return the part of a text that each of its tokens adds.

    A token's text depends on those before it, so that texts of growing length are compared with the
    whole: a character of several tokens belongs to the last of them. The texts grow from `start`
    on, which moves up where the text from there on is a part of the whole: the work is linear.
    """
    whole = chat.text(ids)
    ends: list[int] = []
    start, base, end = 0, 0, 0  # first token decoded; characters before its text; those done
    for number in range(1, len(ids) + 1):
        text = chat.text(ids[start:number])
        rest = whole[base : base + len(text)]
        same = len(text) if text == rest else _alike(text, rest)
        end = len(whole) if number == len(ids) else max(end, base + same)
        ends.append(end)
        if number - start >= _WINDOW and same == len(text):
            short = chat.text(ids[number - 1 : number])
            if short and whole.endswith(short, base, end):
                start, base = number - 1, end - len(short)
    return [whole[before:after] for before, after in zip([0, *ends], ends, strict=False)]


def _alike(text: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = zip(text, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
