"""Order of a run: steps are fixed lists, passes are permutations, and no document is dropped."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from plugin.data.steps import Slot, pass_order, run_length, step_slots


def run(
    documents: int, step_size: int, steps: int, seed: int = 5, total: int | None = None
) -> list[list[Slot]]:
    return [step_slots(documents, step_size, step, seed, total) for step in range(steps)]


@pytest.mark.parametrize(("documents", "step_size"), [(10, 4), (10, 10), (7, 3), (3, 8), (1, 5)])
def test_every_document_comes_exactly_once_a_pass(documents: int, step_size: int) -> None:
    passes = 4
    flat = list(chain(*run(documents, step_size, -(-passes * documents // step_size))))
    for pass_ in range(passes):
        mine = [slot for slot in flat if slot.pass_ == pass_]
        assert sorted(slot.index for slot in mine) == list(range(documents))
        assert [slot.ordinal for slot in mine] == list(range(documents)), (
            "ordinals continue across the borders of steps"
        )


def test_step_across_two_passes_holds_both_ends() -> None:
    step = step_slots(10, 4, 2, seed=5)
    assert [(slot.pass_, slot.ordinal) for slot in step] == [(0, 8), (0, 9), (1, 0), (1, 1)]


def test_passes_and_seeds_have_different_orders() -> None:
    orders = [tuple(pass_order(50, seed, pass_).tolist()) for seed in (1, 2) for pass_ in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert tuple(range(50)) not in orders


def test_step_does_not_depend_on_earlier_calls() -> None:
    steps = run(6, 4, 9)
    assert [step_slots(6, 4, step, 5) for step in reversed(range(9))] == steps[::-1]


def test_documents_of_a_run_do_not_depend_on_step_size() -> None:
    assert list(chain(*run(10, 6, 4))) == list(chain(*run(10, 8, 3)))


@pytest.mark.parametrize(
    ("documents", "step_size", "epochs", "steps", "total"),
    [
        (10, 4, 1, 3, 10),
        (10, 4, 2, 5, 20),
        (10, 4, 0.25, 1, 3),
        (10, 3, 1.5, 5, 15),
        (8, 8, 3, 3, 24),
    ],
)
def test_epochs_drop_nothing_and_repeat_nothing(
    documents: int, step_size: int, epochs: float, steps: int, total: int
) -> None:
    assert run_length(documents, step_size, epochs, steps=777) == (steps, total)
    seen = Counter(slot.index for slot in chain(*run(documents, step_size, steps, total=total)))
    assert sum(seen.values()) == total
    assert max(seen.values()) <= -(-total // documents)
    assert min(seen[index] for index in range(documents)) >= total // documents
    assert step_slots(documents, step_size, steps - 1, 5, total), "the last step is not empty"
    assert not step_slots(documents, step_size, steps, 5, total)


def test_run_without_epochs_has_its_steps_and_all_are_full() -> None:
    assert run_length(10, 4, 0, 7) == (7, None)
    assert {len(step) for step in run(10, 4, 7)} == {4}


@pytest.mark.parametrize(("documents", "step_size"), [(22, 8), (7, 3), (5, 8), (16, 8)])
def test_resume_with_more_epochs_skips_no_document(documents: int, step_size: int) -> None:
    """An epoch may end with a short step; a resumed run still sees each document once a pass."""
    flat: list[Slot] = []
    done = behind = 0
    for epochs in (1, 3, 4):
        steps, total = run_length(documents, step_size, epochs, 777, behind)
        flat += chain(
            *(
                step_slots(documents, step_size, step, 5, total, behind)
                for step in range(done, steps)
            )
        )
        assert len(flat) == total
        done, behind = steps, steps * step_size - total
    whole = list(
        chain(*run(documents, step_size, -(-4 * documents // step_size), total=4 * documents))
    )
    assert flat == whole
