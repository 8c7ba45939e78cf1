"""Learning-rate schedules, as a share of the peak at each step.

The numbers are those of transformers' get_scheduler, as a test holds; its module imports peft and
bitsandbytes, a third of the time that a worker needs to start. torch's LambdaLR is not used: it
warns when an update comes first that float16's scaler skips, and when accelerate has wrapped the
optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

WSD_DECAY = 10  # wsd falls over the last tenth
LEAST = {"one_minus_sqrt": 0.001}  # the share a schedule begins and ends with, where that is not 0


class Schedule:
    """Sets an optimizer's learning rate for each update; `share` maps the number of updates made to
    a share of the peak.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, share: Callable[[int], float]):
        self._optimizer, self._share = optimizer, share
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self.move_to(0)

    def get_last_lr(self) -> list[float]:
        """The rate of the next update, one a parameter group."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def step(self) -> None:
        """Count one update, made or skipped."""
        self.move_to(self._done + 1)

    def move_to(self, done: int) -> None:
        """Set the rate of the update that follows `done` others."""
        self._done = done
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._share(done)


def make_schedule(optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: int) -> Schedule:
    """A schedule over `steps` updates, `warmup` of them rising; `name` as learning_rate_schedule
    has it.
    """
    return Schedule(optimizer, partial(rate, name, steps=steps, warmup=warmup))


def warmup_steps(steps: int, *, share: float, number: int) -> int:
    """Updates of a run of `steps` that rise: `number` of them if it is above 0, else a share of the
    run.

    Always fewer than the run has: the first update of a warm-up has the lowest rate, which may be
    0, so that a run which is nothing but warm-up would end before it reaches its rate, and one of a
    single step would learn nothing.
    """
    return min(number or math.ceil(share * steps), steps - 1)


def rate(name: str, step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak learning rate for update `step`, counted from 0. cosine: Loshchilov and
    Hutter 2017 (arXiv 1608.03983); wsd: Hu et al. 2024 (arXiv 2404.06395); one_minus_sqrt: Haegele
    et al. 2024 (arXiv 2405.18392).
    """
    least = LEAST.get(name, 0.0)
    if name == "constant":
        return 1.0
    if step < warmup:
        return least + (1 - least) * step / warmup
    if name == "constant_with_warmup":
        return 1.0
    falling = max(1, steps // WSD_DECAY if name == "wsd" else steps - warmup)
    gone = min(1.0, max(0.0, (step - steps + falling) / falling))
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * gone)),
        "one_minus_sqrt": 1 - math.sqrt(gone),
    }.get(name, 1 - gone)
    return least + (1 - least) * left
