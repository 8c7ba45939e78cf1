"""Steps of the benches: documents of drawn lengths or full rows, noised and packed as trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from references import Noised
from shapes import Shape, draw_batch

from plugin.data.documents import Builder, Documents
from plugin.data.packing import Layout
from plugin.data.steps import Slot
from plugin.objectives.answers import Answers, EndFill
from plugin.objectives.masked import Loss, by_time
from plugin.objectives.noise import Noise
from plugin.training.step import Step, StepRules, build_step

PAD, MASK, END = 0, 3, 2
RULES = StepRules(
    noise=Noise(seed=0, mask_id=MASK),
    answers=Answers(
        (EndFill(policy="single", block=32, max_length=8192, end_ids=(END,), fill_id=END),)
    ),
    loss=Loss(weight=by_time("linear"), norm="token"),
)


@dataclass(frozen=True)
class Work:
    """One step, laid out for ours and as a plain list of noised documents."""

    step: Step
    noised: list[Noised]


def make_work(shape: Shape, kind: str, order: str, seed: int) -> Work:
    """Return one step: a typical micro-batch of answers of Alpaca-like (or other) lengths.

    Documents are in random order or grouped by length.
    """
    lengths, prompts = draw_batch(kind, order, shape.batch_size, seed)
    documents = make_documents(shape.vocabulary, lengths, prompts, seed)
    step = _step(documents, shape.batch_size)
    by_document = {
        index: one
        for micro_batch in step.micro_batches
        for index, one in zip(micro_batch.documents, micro_batch.corruptions, strict=True)
    }
    return Work(
        step, [(documents[index].ids, by_document[index]) for index in range(len(documents))]
    )


def make_step(
    vocabulary: int, lengths: NDArray[np.int64], prompts: NDArray[np.int64], seed: int
) -> Step:
    """Return one step of documents of these lengths, packed within the automatic token budget.

    It has as few micro-batches as that budget allows.
    """
    return _step(make_documents(vocabulary, lengths, prompts, seed), len(lengths))


def make_documents(
    vocabulary: int, lengths: NDArray[np.int64], prompts: NDArray[np.int64], seed: int
) -> Documents:
    """Return documents of uniformly drawn tokens, everything after the prompt supervised."""
    rng, builder = np.random.default_rng(1000 + seed), Builder()
    for length, prompt in zip(lengths, prompts, strict=True):
        ids = rng.integers(8, vocabulary - 8, length).astype(np.int32)
        builder.add(ids, np.arange(length) >= prompt, int(prompt), "")
    return builder.build()


def _step(documents: Documents, batch_size: int) -> Step:
    slots = [Slot(0, index, index) for index in range(len(documents))]
    return build_step(slots, documents, RULES, batch_size=batch_size, layout=Layout(packed=True))
