"""Requests to a sampler, their answers, and one step of a trace. T tokens of a canvas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.chat import ChatFormat


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the special tokens that sampling needs."""

    mask_id: int
    end_ids: tuple[int, ...]  # any of them ends an answer
    pad_id: int
    size: int | None = None  # tokens; rows of the head behind them are padding, never chosen

    @staticmethod
    def of(chat: ChatFormat) -> Vocabulary:
        """Return the ids of a model's chat format."""
        return Vocabulary(chat.mask_id, chat.end_ids, chat.pad_id, len(chat.tokenizer))


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to answer, or a text whose holes are to be filled."""

    ids: NDArray[np.int32]  # [T] the prompt; of an infilling, everything, holes included
    # Places of `ids` that are filled, ascending: an infilling. None: an answer behind `ids`.
    holes: NDArray[np.int64] | None = None
    prompt: int | None = None  # tokens that guidance hides and a result omits; None: all of `ids`
    longest: int | None = None  # new tokens at most, if fewer than the settings' max_new_tokens
    draw: tuple[int, ...] = ()  # with the seed, names the random draws: (prompt, sample) numbers

    @property
    def start(self) -> int:
        """Return the place at which the answer begins."""
        return self.ids.size if self.prompt is None else self.prompt


@dataclass(frozen=True)
class DenoisingStep:
    """One denoising step of one request; places count from the start of its answer."""

    step: int  # from 0, over all blocks
    block: int
    positions: tuple[int, ...]  # ascending
    ids: tuple[int, ...]  # revealed there

    def record(self, text: str) -> dict[str, Any]:
        """Return a line of a trace; `text` shows the answer after the step."""
        return {
            "step": self.step,
            "block": self.block,
            "positions": list(self.positions),
            "ids": list(self.ids),
            "text": text,
        }


@dataclass(frozen=True)
class Sample:
    """An answer and the work that it took."""

    ids: NDArray[np.int32]  # behind the prompt, end tokens included
    steps: int  # denoising steps
    nfe: int  # forwards of this row: number of function evaluations, guidance counted


# (number of the request, the step, the answer after it with masks at what is left)
OnStep = Callable[[int, DenoisingStep, NDArray[np.int32]], None]


def merged(
    taken: Sequence[tuple[DenoisingStep, NDArray[np.int32]]], most: int
) -> list[tuple[DenoisingStep, NDArray[np.int32]]]:
    """Return at most `most` of the steps (with the answer after each), neighbours merged."""
    ends = [len(taken) * (number + 1) // most for number in range(most)]
    groups = [taken[start:end] for start, end in pairwise([0, *ends]) if end > start]
    return [(_one([step for step, _ in group]), group[-1][1]) for group in groups]


def _one(steps: Sequence[DenoisingStep]) -> DenoisingStep:
    revealed = {
        place: token
        for step in steps
        for place, token in zip(step.positions, step.ids, strict=True)
    }
    last = steps[-1]
    positions, ids = zip(*sorted(revealed.items()), strict=True) if revealed else ((), ())
    return DenoisingStep(last.step, last.block, positions, ids)
