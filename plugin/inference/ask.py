"""Requests made of texts: a dialogue to answer, or a text whose holes are to be filled.

A hole is written `[[N]]`: N tokens. T tokens of a canvas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..base.errors import JobError, Problem
from ..data.turns import Turn
from ..models.configuration import attention_pattern, logit_shift
from ..sampling.request import Request, Sample
from .model import KnownModel, LoadedModel

_HOLE = re.compile(r" ?\[\[([0-9]{1,6})\]\]")


def dialogue(prompt: str, system: str = "") -> list[Turn]:
    """Return the turns of one question."""
    return [*([Turn("system", system)] if system else []), Turn("user", prompt)]


def holes_of(text: str) -> list[int]:
    """Return the sizes of a text's holes, in tokens."""
    return [int(found[1]) for found in _HOLE.finditer(text)]


def check_holes(text: str) -> Problem | None:
    """Return what is wrong with the holes of a text, if anything is."""
    sizes = holes_of(text)
    if not sizes:
        return Problem("infill", "a text with holes such as [[4]]", repr(text[:80]))
    if 0 in sizes:
        return Problem("infill", "holes of at least one token", "[[0]]")
    return None


def request_of(
    known: KnownModel,
    turns: Sequence[Turn],
    infill: str | None = None,
    draw: tuple[int, ...] = (),
) -> Request:
    """Return the request to answer `turns`, whose answer may be given with holes.

    Without turns `infill` is a plain text. Raises JobError (exit 2) where the model has no room, and
    for an infilling that it cannot do.
    """
    prompt = known.chat.prompt(turns) if turns else _opening(known)
    if infill is not None:
        return replace(_infilling(known, prompt, infill), draw=draw)
    room = known.positions - prompt.size
    if room < 1:
        raise JobError(_too_long("prompt", known.positions - 1, prompt.size))
    return Request(ids=prompt, longest=room, draw=draw)


def _too_long(field: str, most: int, got: int) -> Problem:
    expected = f"at most {most} tokens, which leave the model room to answer"
    return Problem(field, expected, f"{got} tokens", "Shorten it.")


def _opening(known: KnownModel) -> NDArray[np.int32]:
    return np.array(known.chat.opening, np.int32)


def _infilling(known: KnownModel, prompt: NDArray[np.int32], text: str) -> Request:
    pattern = attention_pattern(known.config)
    if pattern != "full":
        fix = f"It sees nothing behind a {'hole' if pattern == 'causal' else 'block'}."
        raise JobError(Problem("infill", f"no infill with a {pattern} model", repr(text[:80]), fix))
    if problem := check_holes(text):
        raise JobError(problem)
    # A space before a hole belongs to the first token of the hole, as tokenizers have it.
    texts, sizes = _HOLE.split(text)[::2], holes_of(text)
    pieces = iter(known.chat.plain_ids([piece for piece in texts if piece]))
    end = known.chat.end_id if prompt.size > 1 else known.chat.fill_id
    ids, holes = prompt.tolist(), list[int]()
    for piece, size in zip(texts, [*sizes, 0], strict=True):
        ids += next(pieces) if piece else []
        holes += range(len(ids), len(ids) + size)
        ids += [known.chat.mask_id] * size
    if holes[0] < logit_shift(known.config):
        got = "a hole at the beginning"
        raise JobError(Problem("infill", "a text before the first hole", got))
    ids.append(end)
    if len(ids) > known.positions:
        raise JobError(_too_long("infill", known.positions, len(ids)))
    return Request(ids=np.array(ids, np.int32), holes=np.array(holes), prompt=prompt.size)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer as text, and the work that it took."""

    text: str
    tokens: int  # that the model chose; those behind an end left out
    steps: int
    nfe: int


def answer_of(known: KnownModel, request: Request, sample: Sample) -> Answer:
    """Return the text of a sample."""
    ids = sample.ids.tolist()
    written = min(len(known.chat.until_end(ids)) + 1, len(ids))  # with its end token
    tokens = written if request.holes is None else request.holes.size
    return Answer(text=known.chat.decode(ids), tokens=tokens, steps=sample.steps, nfe=sample.nfe)


def answers(
    loaded: LoadedModel, dialogues: Sequence[Sequence[Turn]], batch_size: int = 8
) -> list[Answer]:
    """Answer dialogues, in their order. Raises JobError (exit 2) for one without room."""
    requests = [request_of(loaded, turns, draw=(number,)) for number, turns in enumerate(dialogues)]
    found = dict(loaded.stream(requests, batch_size))
    return [answer_of(loaded, request, found[number]) for number, request in enumerate(requests)]
