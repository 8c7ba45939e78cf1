"""Steps to measure with: documents of drawn lengths, or full rows, noised and packed as the worker does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from references import Noised
from shapes import Shape, draw_lengths

from plugin.data.documents import Builder, Documents
from plugin.data.layout import Layout
from plugin.data.steps import Slot
from plugin.objectives.mdlm import by_time
from plugin.objectives.noise import Noise
from plugin.step import Step, StepRules, build_step

PAD, MASK, END = 0, 3, 2
RULES = StepRules(
    noise=Noise(seed=0),
    weigh=by_time("linear"),
    norm="token",
    mask_id=MASK,
    end_ids=(END,),
    fill_id=END,
    start_id=1,
    eos_policy="single",
    eos_block=32,
    max_length=8192,
)


@dataclass(frozen=True)
class Work:
    """One step, laid out for ours and as a plain list of noised documents."""

    step: Step
    noised: list[Noised]


def make_work(shape: Shape, kind: str, seed: int) -> Work:
    """One step of `shape.documents` answers of Alpaca-like (or other) lengths."""
    lengths, prompts = draw_lengths(kind, shape.documents, seed=seed)
    documents = _documents(shape, lengths, prompts, seed)
    step = _step(documents, shape)
    by_document = {index: one for piece in step.pieces for index, one in zip(piece.documents, piece.corruptions, strict=True)}
    return Work(step, [(documents[index].ids, by_document[index]) for index in range(len(documents))])


def make_rows(shape: Shape, seed: int, tokens: int = 1024) -> Step:
    """One step of full rows of `tokens`, everything learned: pretraining's shape."""
    rows = min(tokens, shape.longest)
    lengths = np.full(shape.documents, rows)
    return _step(_documents(shape, lengths, np.ones_like(lengths), seed), shape)


def _documents(shape: Shape, lengths: np.ndarray, prompts: np.ndarray, seed: int) -> Documents:
    rng = np.random.default_rng(1000 + seed)
    builder = Builder()
    for length, prompt in zip(lengths, prompts, strict=True):
        ids = rng.integers(8, shape.vocabulary - 8, length).astype(np.int32)
        builder.add(ids, np.arange(length) >= prompt, int(prompt), "")
    return builder.build()


def _step(documents: Documents, shape: Shape) -> Step:
    slots = [Slot(0, index, index) for index in range(len(documents))]
    return build_step(slots, documents, RULES, batch_size=shape.batch_size, layout=Layout(packed=True))
