"""Prefetched steps: the same steps in the same order; an error is raised by the step that has it."""

from __future__ import annotations

import threading

import pytest
from helpers.tiny import random_documents, rules

from plugin.data.steps import step_slots
from plugin.training.prefetch import Prefetcher
from plugin.training.step import Step, build_step

DOCUMENTS = random_documents(12)


def make(step: int) -> Step:
    return build_step(step_slots(len(DOCUMENTS), 4, step, 0), DOCUMENTS, rules(), batch_size=2)


def test_prefetched_steps_equal_those_built_on_demand() -> None:
    ahead = Prefetcher(make, 6, pin=False)
    for number in (*range(4), 1, 2, 5):  # a jump, as after a resume, is built on demand
        ours, plain = ahead(number), make(number)
        assert ours.count == plain.count
        assert [micro_batch.documents for micro_batch in ours.micro_batches] == [
            micro_batch.documents for micro_batch in plain.micro_batches
        ]
        assert all(
            a.batch.ids.equal(b.batch.ids)
            for a, b in zip(ours.micro_batches, plain.micro_batches, strict=True)
        )
    ahead.close()


def test_prefetcher_builds_the_next_step_only() -> None:
    built: list[int] = []
    done = threading.Event()

    def watched(step: int) -> Step:
        built.append(step)
        if step == 1:
            done.set()
        return make(step)

    ahead = Prefetcher(watched, 2, pin=False)
    ahead(0)
    assert done.wait(timeout=30)
    ahead(1)
    ahead.close()
    assert built == [0, 1]


def test_prefetch_error_is_raised_by_its_step() -> None:
    def broken(step: int) -> Step:
        if step == 1:
            raise ZeroDivisionError
        return make(step)

    ahead = Prefetcher(broken, 3, pin=False)
    ahead(0)
    with pytest.raises(ZeroDivisionError):
        ahead(1)
    ahead.close()
