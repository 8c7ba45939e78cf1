"""Learning-rate schedules, as a share of the peak rate at each update.

A test holds the numbers to those of transformers' get_scheduler, whose module imports peft and
bitsandbytes: a third of a worker's start. torch's LambdaLR is not used: it warns if float16's
scaler skips the first update, and if accelerate has wrapped the optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

# First and last share of a schedule, if not 0.
LEAST = {"one_minus_sqrt": 0.001, "wsd_one_minus_sqrt": 0.001}


class Schedule:
    """Learning rate of each update; `share` maps the number of past updates to a share."""

    def __init__(self, optimizer: torch.optim.Optimizer, share: Callable[[int], float]):
        self._optimizer, self._share = optimizer, share
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self.move_to(0)

    def get_last_lr(self) -> list[float]:
        """Return the rate of the next update, for each parameter group."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def step(self) -> None:
        """Count an update, made or skipped."""
        self.move_to(self._done + 1)

    def move_to(self, done: int) -> None:
        """Set the rate of the update that follows `done` updates."""
        self._done = done
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._share(done)


def make_schedule(
    optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: int, decay_ratio: float = 0.1
) -> Schedule:
    """Return the schedule `name` (of learning_rate_schedule) over `steps` updates.

    The rate rises during the first `warmup` of them; wsd falls over the last `decay_ratio`.
    """
    # 0.29 * 100 is 28.999999999999996
    decay = max(1, math.floor(decay_ratio * steps + 1e-9))
    return Schedule(optimizer, partial(rate, name, total=steps, warmup=warmup, decay=decay))


def warmup_steps(steps: int, *, share: float, number: int) -> int:
    """Return the warm-up updates of a run of `steps`: `number` if above 0, else a share of the run.

    Always fewer than `steps`. The first update of a warm-up has the lowest rate, which may be 0. A
    run of warm-up alone would never reach its rate, and a run of one step would learn nothing.
    """
    return min(number or math.ceil(share * steps), steps - 1)


def rate(name: str, done: float, *, total: float, warmup: float, decay: float) -> float:
    """Return the share of the peak learning rate for the update that follows `done` of `total`.

    All are updates, or tokens of a token clock. The rate rises up to `warmup`; wsd is constant up
    to the last `decay`, and then falls linearly or as 1 - sqrt.

    Sources: cosine, Loshchilov and Hutter 2017 (arXiv 1608.03983); wsd, Hu et al. 2024 (arXiv
    2404.06395); one_minus_sqrt, Haegele et al. 2024 (arXiv 2405.18392).
    """
    least = LEAST.get(name, 0.0)
    if name == "constant":
        return 1.0
    if done < warmup:
        return least + (1 - least) * done / warmup
    if name == "constant_with_warmup":
        return 1.0
    falling = max(1, total - warmup)
    if name.startswith("wsd"):
        falling = min(decay, falling)
    gone = min(1.0, max(0.0, (done - total + falling) / falling))
    if name == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * gone))
    elif name.endswith("one_minus_sqrt"):
        left = 1 - math.sqrt(gone)
    else:
        left = 1 - gone
    return least + (1 - least) * left
