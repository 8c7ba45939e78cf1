"""How the learning rate moves, as a share of its peak at each step.

The numbers are those of transformers' get_scheduler, as a test holds; its module imports peft and bitsandbytes, a third of the time
that a worker needs to start.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR

WSD_DECAY = 10  # wsd falls over the last tenth
LEAST = {"one_minus_sqrt": 0.001}  # the share a schedule begins and ends with, where that is not 0


def make_schedule(optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: int) -> LambdaLR:
    """A scheduler to be stepped after each of `steps` updates, `warmup` of them rising; `name` as learning_rate_schedule has it."""
    return LambdaLR(optimizer, partial(rate, name, steps=steps, warmup=warmup))


def rate(name: str, step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak learning rate for update `step`, counted from 0. cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983);
    wsd: Hu et al. 2024 (arXiv 2404.06395); one_minus_sqrt: Haegele et al. 2024 (arXiv 2405.18392)."""
    least = LEAST.get(name, 0.0)
    if name == "constant":
        return 1.0
    if step < warmup:
        return least + (1 - least) * step / warmup
    if name == "constant_with_warmup":
        return 1.0
    falling = max(1, steps // WSD_DECAY if name == "wsd" else steps - warmup)
    gone = min(1.0, max(0.0, (step - steps + falling) / falling))
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "one_minus_sqrt": 1 - math.sqrt(gone)}.get(name, 1 - gone)
    return least + (1 - least) * left
