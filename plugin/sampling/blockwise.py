"""Block-wise decoding by confidence: a canvas of masks after the prompt, revealed block by block.

Within a block every step predicts all masked tokens and keeps the most confident ones (LLaDA's
low-confidence remasking, Nie et al. 2025). Rows never see each other: a batch of 8 gives the same
answers as 8 single calls. S rows, T tokens, M masked, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..run.facts import SamplerSettings

# (ids [S, T], real [S, T] bool, places [M, 2] row and column) -> logits [M, V]
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
OnStep = Callable[[list[NDArray[np.int32]]], None]  # the rows' canvases after a step


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the special tokens that sampling needs."""

    mask_id: int
    end_ids: tuple[int, ...]  # any of them ends an answer
    pad_id: int


@dataclass(frozen=True)
class Sample:
    """An answer and the work that it took."""

    ids: NDArray[np.int32]  # the answer, end tokens included
    steps: int  # denoising steps of this row


def generate(
    predict: Predict,
    prompts: Sequence[NDArray[np.int32]],
    vocabulary: Vocabulary,
    settings: SamplerSettings,
    on_step: OnStep | None = None,
) -> list[Sample]:
    """Answer every prompt; a row is finished after the block that holds its first end token."""
    blocks = [
        min(settings.block_length, settings.max_new_tokens - start)
        for start in range(0, settings.max_new_tokens, settings.block_length)
    ]
    canvas = [
        np.concatenate([prompt, np.full(0 if settings.grow else sum(blocks), vocabulary.mask_id)])
        for prompt in prompts
    ]
    start = [prompt.size for prompt in prompts]
    taken = [0] * len(prompts)
    active = list(range(len(prompts)))
    for size in blocks:
        if settings.grow:
            for row in active:
                canvas[row] = np.concatenate([canvas[row], np.full(size, vocabulary.mask_id)])
        for quota in reveal_quotas(size, settings.steps):
            _reveal(
                predict,
                canvas,
                active,
                [range(start[row], start[row] + size) for row in active],
                quota,
                vocabulary,
            )
            for row in active:
                taken[row] += 1
            if on_step:
                on_step([row.astype(np.int32) for row in canvas])
        for row in active:
            start[row] += size
        active = [
            row
            for row in active
            if not np.isin(canvas[row][prompts[row].size : start[row]], vocabulary.end_ids).any()
        ]
        if not active:
            break
    answers = [
        canvas[row][prompt.size : start[row]].astype(np.int32) for row, prompt in enumerate(prompts)
    ]
    return [Sample(ids, steps) for ids, steps in zip(answers, taken, strict=True)]


def reveal_quotas(masked: int, steps: int) -> list[int]:
    """Return the tokens that each step reveals: masked // steps, one more in the first steps."""
    steps = max(1, min(steps, masked))
    return [masked // steps + (step < masked % steps) for step in range(steps)]


def _reveal(
    predict: Predict,
    canvas: list[np.ndarray],
    active: Sequence[int],
    windows: Sequence[range],
    quota: int,
    vocabulary: Vocabulary,
) -> None:
    """Reveal the `quota` most confident masked tokens of each active row's window, in place."""
    longest = max(canvas[row].size for row in active)
    ids = np.full((len(active), longest), vocabulary.pad_id, dtype=np.int64)
    real = np.zeros((len(active), longest), dtype=bool)
    places: list[tuple[int, int]] = []
    for line, (row, window) in enumerate(zip(active, windows, strict=True)):
        ids[line, : canvas[row].size] = canvas[row]
        real[line, : canvas[row].size] = True
        places += [(line, column) for column in window if canvas[row][column] == vocabulary.mask_id]
    where = np.array(places, dtype=np.int64).reshape(-1, 2)
    logits = (
        predict(torch.from_numpy(ids), torch.from_numpy(real), torch.from_numpy(where))
        .float()
        .cpu()
    )
    logits[:, vocabulary.mask_id] = -torch.inf  # a revealed token is never a mask
    confidence, token = torch.softmax(logits, dim=-1).max(dim=-1)
    for line, row in enumerate(active):
        mine = np.flatnonzero(where[:, 0] == line)
        best = mine[np.argsort(-confidence.numpy()[mine], kind="stable")[:quota]]
        canvas[row][where[best, 1]] = token.numpy()[best]
