"""The heaviest micro-batch of a run, found from all lengths: one function for check and train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.tiny import pairs, rules

from plugin.assembly.clock import make_clock, step_maker
from plugin.assembly.heaviest import heaviest_batch, heavy_steps, lengths_of
from plugin.config.params import Params
from plugin.data.documents import Documents
from plugin.data.packing import Layout
from plugin.training.step import StepRules

# 200 short documents and a long one, which a run of 50 steps meets once, after its first steps.
SIZES = [(3, 4 + number % 5) for number in range(200)]


def params(**values: Any) -> Params:
    fixed = {"model_name": "m", "dataset_name": "d", "batch_size": 4, "train_steps": 50, "seed": 6}
    return Params.model_validate(fixed | values)


def step_of(document: int, documents: Documents, how: Params) -> int:
    from plugin.data.steps import step_slots

    clock = make_clock(how, len(documents), 0, 1)
    return next(
        k
        for k in range(60)
        if document in {s.index for s in step_slots(len(documents), 4, k, how.seed, clock.total)}
    )


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_heaviest_batch_is_found_late_in_the_run(packed: bool) -> None:
    documents, how, answers = pairs(*SIZES, (3, 50)), params(), rules()
    late = step_of(200, documents, how)
    assert late > 20, "the long document comes late with this seed"
    clock, layout = make_clock(how, len(documents), 0, 1), Layout(packed)
    assert heavy_steps(lengths_of(documents, answers), clock, how.seed, 4, layout, 1)[0] == late
    make = step_maker(how, documents, answers, clock, layout, 0, 1)
    batch, several = heaviest_batch(how, documents, answers, clock, layout, 1, make)
    tokens = max(sum(make(late).lengths), 53)
    assert not several
    assert batch.ids.shape[0] >= (tokens if packed else 53)
    assert packed or (batch.documents, batch.longest) == (4, 53)


def bound_holds(
    documents: Documents, how: Params, answers: StepRules, layout: Layout, ranks: int
) -> None:
    """Assert that the batch found is as heavy as the heaviest of all steps, each built."""
    clock = make_clock(how, len(documents), 0, ranks)
    make = step_maker(how, documents, answers, clock, layout, 0, ranks)
    batch, _ = heaviest_batch(how, documents, answers, clock, layout, ranks, make)
    every = [
        micro_batch.batch
        for step in range(clock.cadence.steps)
        for micro_batch in make(step).micro_batches
    ]
    if layout.packed:
        heaviest, found = max(one.ids.shape[0] for one in every), batch.ids.shape[0]
    else:
        heaviest, found = (
            max(one.documents * one.longest for one in every),
            batch.documents * batch.longest,
        )
    assert found >= 0.9 * heaviest


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "layout", [Layout(False), Layout(True), Layout(True, 64), Layout(False, 64)]
)
@pytest.mark.parametrize("policy", ["single", "block"])
def test_heaviest_batch_is_that_of_all_steps(policy: str, layout: Layout, ranks: int) -> None:
    rng = np.random.default_rng(1)
    documents = pairs(
        *(
            (int(rng.integers(2, 8)), int(size))
            for size in np.clip(rng.lognormal(2.2, 0.7, 120), 1, 50)
        )
    )
    how = params(gradient_accumulation_steps=2, train_steps=30)
    bound_holds(documents, how, rules(eos_policy=policy).undisturbed(), layout, ranks)
