"""Learning-rate schedules: numbers worked by hand, and those of transformers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from plugin.assembly.clock import make_run_schedule
from plugin.config.params import Params
from plugin.training.lr_schedule import make_schedule, rate, warmup_steps
from plugin.training.token_clock import TokenClock, token_clock

STEPS, WARMUP = 40, 6
NAMES = get_args(Params.model_fields["learning_rate_schedule"].annotation)
WSD = "warmup_stable_decay"
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "wsd": (WSD, {"num_decay_steps": STEPS // 10, "decay_type": "linear"}),
    "wsd_one_minus_sqrt": (
        WSD,
        {"num_decay_steps": STEPS // 10, "decay_type": "1-sqrt", "min_lr_ratio": 0.001},
    ),
    "one_minus_sqrt": (
        WSD,
        {"num_decay_steps": STEPS - WARMUP, "decay_type": "1-sqrt", "min_lr_ratio": 0.001},
    ),
}


EQUAL = {"pack": 64, "largest": 3, "devices": 2}


def job(name: str, **more: object) -> Params:
    values = {"model_name": "m", "dataset_name": "d", "learning_rate_schedule": name}
    return Params.model_validate({**values, **more})


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
        ("wsd_one_minus_sqrt", 1),
        ("one_minus_sqrt", 0.001 + 0.999 * (1 - 0.5**0.5)),
    ],
)
def test_schedule_rate_half_way(name: str, at_8_of_16: float) -> None:
    assert rate(name, 8, total=16, warmup=0, decay=1) == pytest.approx(at_8_of_16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 2), (3, 3)])
def test_shortest_runs_have_rates_up_to_the_peak(name: str, steps: int, warmup: int) -> None:
    assert all(
        0 <= rate(name, step, total=steps, warmup=warmup, decay=1) <= 1 for step in range(steps + 1)
    )


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
    params = job(name, warmup_steps=3)
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


@pytest.mark.parametrize("name", ["wsd", "wsd_one_minus_sqrt"])
@pytest.mark.parametrize(("ratio", "first"), [(0.1, 90), (0.29, 71), (0.5, 50), (1.0, 10)])
def test_wsd_falls_over_its_decay_ratio(name: str, ratio: float, first: int) -> None:
    """The fall begins after update `first`; a ratio of 1 begins after the warm-up."""
    schedule = make_schedule(one := optimizer(), name, 100, 10, ratio)
    rates: list[float] = []
    for _ in range(100):
        rates += [schedule.get_last_lr()[0] / 0.5]
        one.step()
        schedule.step()
    assert rates[10 : first + 1] == [1.0] * (first - 9)
    falling = [(step - first) / (100 - first) for step in range(first, 100)]
    linear = [1 - x for x in falling]
    root = [0.001 + 0.999 * (1 - x**0.5) for x in falling]
    assert rates[first:] == pytest.approx(linear if name == "wsd" else root)


@pytest.mark.parametrize("name", NAMES)
def test_token_clock_of_equal_steps_gives_the_rates_of_steps(name: str) -> None:
    params = job(name, warmup_ratio=0.25)
    by_steps = make_run_schedule(params, optimizer(), STEPS, print)
    by_tokens = make_run_schedule(params, optimizer(), STEPS, print, token_clock(**EQUAL))
    for done in range(STEPS):
        by_steps.move_to(done)
        by_tokens.move_to(done)
        assert by_tokens.get_last_lr() == pytest.approx(by_steps.get_last_lr(), abs=1e-12)


def test_schedule_follows_the_share_of_tokens() -> None:
    """Steps of 10, 10, 20, 20 and then 30 tokens: 240 in ten steps."""
    clock = TokenClock(unit=10, largest=3, ends=(2, 4))
    assert [clock.after(steps) for steps in (1, 4, 10)] == [10, 60, 240]
    schedule = make_run_schedule(job("linear", warmup_ratio=0), optimizer(), 10, print, clock)
    schedule.move_to(4)
    assert schedule.get_last_lr() == [0.5 * (1 - 60 / 240)]
    warm = make_run_schedule(job("linear", warmup_steps=4), optimizer(), 10, print, clock)
    warm.move_to(1)
    assert warm.get_last_lr() == [0.5 * 10 / 60]
    wsd = make_run_schedule(
        job("wsd", warmup_ratio=0, decay_ratio=0.25), optimizer(), 10, print, clock
    )
    for done, share in ((8, 1), (9, 0.5)):  # 180 and 210 of 240
        wsd.move_to(done)
        assert wsd.get_last_lr() == [0.5 * share]
