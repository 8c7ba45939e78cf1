"""Learning rates: worked numbers, and those of transformers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from plugin.params import Params
from plugin.schedules import make_schedule, rate

STEPS, WARMUP = 40, 6
NAMES = get_args(Params.model_fields["learning_rate_schedule"].annotation)
WSD = "warmup_stable_decay"
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "wsd": (WSD, {"num_decay_steps": STEPS // 10, "decay_type": "linear"}),
    "one_minus_sqrt": (WSD, {"num_decay_steps": STEPS - WARMUP, "decay_type": "1-sqrt", "min_lr_ratio": 0.001}),
}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_has_the_rate_that_transformers_gives_it(name: str) -> None:
    known, specific = THEIRS.get(name, (name, {}))
    one, other = optimizer(), optimizer()
    ours = make_schedule(one, name, STEPS, WARMUP)
    theirs = get_scheduler(known, other, WARMUP, STEPS, scheduler_specific_kwargs=specific)
    for _ in range(STEPS):
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), abs=1e-12)
        for each in (one, ours, other, theirs):
            each.step()


@pytest.mark.parametrize(
    ("name", "at_8_of_16"),
    [
        ("constant", 1),
        ("constant_with_warmup", 1),
        ("linear", 0.5),
        ("cosine", 0.5),
        ("wsd", 1),
        ("one_minus_sqrt", 0.001 + 0.999 * (1 - 0.5**0.5)),
    ],
)
def test_half_way(name: str, at_8_of_16: float) -> None:
    assert rate(name, 8, steps=16, warmup=0) == pytest.approx(at_8_of_16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 2), (3, 3)])
def test_the_shortest_runs_have_rates_between_none_and_the_peak(name: str, steps: int, warmup: int) -> None:
    assert all(0 <= rate(name, step, steps=steps, warmup=warmup) <= 1 for step in range(steps + 1))
