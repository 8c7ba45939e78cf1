"""Heaviest micro-batch of a run, for the memory estimate.

Every step is looked at by its documents' lengths alone; the few heaviest are then built in full.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..batch import Batch
from ..config.params import Params
from ..data.documents import Documents
from ..data.packing import Layout, token_budget
from ..data.steps import pass_order
from ..training.memory import stand_in
from ..training.step import Step, StepRules
from .clock import Clock

BUILT = 4  # steps built, of those that look heaviest
PASSES = 64  # of the run that are looked at: later ones only shuffle the same documents anew


def heaviest_batch(
    params: Params,
    documents: Documents,
    rules: StepRules,
    clock: Clock,
    layout: Layout,
    ranks: int,
    make_step: Callable[[int], Step],
) -> tuple[Batch, bool]:
    """Return (the micro-batch with the most tokens, padding included; whether a step has several
    micro-batches).

    `make_step` gives the first rank's share, which holds the longest document of each step.
    """
    heavy = heavy_steps(
        lengths_of(documents, rules), clock, params.seed, params.batch_size, layout, ranks
    )
    micro_batches = [make_step(step).micro_batches for step in heavy]
    several = any(len(step) > 1 for step in micro_batches)
    batches = [micro_batch.batch for step in micro_batches for micro_batch in step]
    if layout.packed:
        return stand_in(max(batches, key=lambda batch: batch.ids.shape[0])), several
    return max(batches, key=lambda batch: batch.documents * batch.longest), several


def lengths_of(documents: Documents, rules: StepRules) -> NDArray[np.int64]:
    """Tokens of each document with its end fill and noisy copies; `eos_policy batch`, which fills by
    step, is left to heavy_steps.
    """
    lengths, prompts = documents.lengths.tolist(), documents.prompts.tolist()
    fill = rules.answers.fill
    filled = lengths if fill.policy == "batch" else fill.lengths(lengths, prompts)
    return rules.noising.row_tokens(
        np.array(filled, dtype=np.int64), documents.supervised, documents.offsets
    )


def heavy_steps(
    lengths: NDArray[np.int64], clock: Clock, seed: int, batch_size: int, layout: Layout, ranks: int
) -> list[int]:
    """Steps, the heaviest first, by a bound on the tokens of their heaviest micro-batch on the
    first rank.
    """
    passes = min(PASSES, -(-clock.cadence.steps * clock.step_size // lengths.size))
    order = np.concatenate([pass_order(lengths.size, seed, pass_) for pass_ in range(passes)])
    steps = max(1, min(clock.cadence.steps, order.size // clock.step_size))
    chosen = lengths[np.resize(order, steps * clock.step_size)].reshape(
        steps, clock.step_size
    )  # [steps, documents]
    longest, total = chosen.max(1), chosen.sum(1)
    if layout.packed:
        budget = layout.tokens or np.array(
            [token_budget([int(most)], batch_size) for most in longest]
        )
        bound = np.minimum(budget, np.maximum(total // ranks, longest))
    else:
        bound = longest * min(batch_size, clock.step_size)
        bound = np.minimum(bound, layout.tokens) if layout.tokens else bound
    return np.argsort(-bound, kind="stable")[:BUILT].tolist()
