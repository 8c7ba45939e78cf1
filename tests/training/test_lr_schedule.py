"""Learning-rate schedules: numbers worked by hand, and those of transformers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from plugin.assembly.clock import make_run_schedule
from plugin.config.params import Params
from plugin.training.lr_schedule import make_schedule, rate, warmup_steps

STEPS, WARMUP = 40, 6
NAMES = get_args(Params.model_fields["learning_rate_schedule"].annotation)
WSD = "warmup_stable_decay"
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "wsd": (WSD, {"num_decay_steps": STEPS // 10, "decay_type": "linear"}),
    "one_minus_sqrt": (
        WSD,
        {"num_decay_steps": STEPS - WARMUP, "decay_type": "1-sqrt", "min_lr_ratio": 0.001},
    ),
}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_schedule_rates_equal_those_of_transformers(name: str) -> None:
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
def test_schedule_rate_half_way(name: str, at_8_of_16: float) -> None:
    assert rate(name, 8, steps=16, warmup=0) == pytest.approx(at_8_of_16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 2), (3, 3)])
def test_shortest_runs_have_rates_up_to_the_peak(name: str, steps: int, warmup: int) -> None:
    assert all(0 <= rate(name, step, steps=steps, warmup=warmup) <= 1 for step in range(steps + 1))


@pytest.mark.parametrize(
    ("steps", "share", "number", "warmup"),
    [
        (1000, 0.1, 0, 100),
        (15, 0.1, 0, 2),
        (1, 0.1, 0, 0),
        (2, 0.9, 0, 1),
        (50, 0.1, 20, 20),
        (50, 0.1, 50, 49),
        (1, 0, 9, 0),
    ],
)
def test_warmup_is_shorter_than_its_run(steps: int, share: float, number: int, warmup: int) -> None:
    assert warmup_steps(steps, share=share, number=number) == warmup


@pytest.mark.parametrize("name", NAMES)
def test_run_of_one_step_has_the_full_rate(name: str) -> None:
    params = Params.model_validate(
        {"model_name": "m", "dataset_name": "d", "learning_rate_schedule": name, "warmup_steps": 3}
    )
    lines: list[str] = []
    schedule = make_run_schedule(params, optimizer(), 1, lines.append)
    assert schedule.get_last_lr() == [0.5]
    wanted = ["warmup_steps: 3 is not shorter than the run of 1; 0 are used"]
    assert lines == ([] if name == "constant" else wanted)


def test_schedule_moves_to_any_step() -> None:
    one, other = (make_schedule(optimizer(), "cosine", STEPS, WARMUP) for _ in range(2))
    for _ in range(17):
        one.step()
    other.move_to(17)
    assert one.get_last_lr() == other.get_last_lr() != [0.5]


@pytest.mark.filterwarnings("error")
def test_skipped_first_update_gives_no_warning() -> None:
    """torch's scheduler warns if float16's scaler skips the first update.

    It also warns if accelerate has wrapped the optimizer's step.
    """
    wrapped = optimizer()
    schedule = make_schedule(wrapped, "linear", 10, 2)
    wrapped.step = lambda *_: None
    schedule.step()
    assert schedule.get_last_lr() == [0.25]
