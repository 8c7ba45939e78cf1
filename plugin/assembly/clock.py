"""Clock of a run: its number of steps, when to evaluate and save, and the documents of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..config.params import Params
from ..data.documents import Documents
from ..data.packing import Layout
from ..data.steps import run_length, step_slots
from ..training.loop import Cadence
from ..training.lr_schedule import Schedule, make_schedule, rate, warmup_steps
from ..training.step import Step, StepRules, build_step
from ..training.token_clock import TokenClock


@dataclass(frozen=True)
class Clock:
    """Length of a run, in steps and documents."""

    cadence: Cadence
    step_size: int  # documents
    total: int | None  # documents of the full run, when it is counted in epochs
    eval_batch_size: int
    behind: int = 0  # documents, see step_slots
    tokens: TokenClock | None = None  # of a run whose length or schedule is counted in tokens

    def seen(self, step: int) -> int:
        """Documents that the first `step` steps hold."""
        documents = step * self.step_size - self.behind
        return documents if self.total is None else min(documents, self.total)


def make_clock(
    params: Params,
    documents: int,
    evaluated: int,
    ranks: int,
    *,
    done: int = 0,
    seen: int = 0,
    tokens: TokenClock | None = None,
) -> Clock:
    """Return the number of steps, and when to log, evaluate and save; shares of the run become
    steps here.

    A resumed run has made `done` steps over `seen` documents: fewer than full steps hold if it was
    to end there first.
    """
    step_size = params.batch_size * params.gradient_accumulation_steps * ranks
    behind = done * step_size - seen
    steps, total = run_length(
        documents, step_size, params.num_train_epochs, params.train_steps, behind
    )
    if tokens and params.train_tokens:
        steps = tokens.steps(params.train_tokens)
    every = {
        "no": 0,
        "steps": _every(params.eval_steps, steps),
        "epoch": math.ceil(documents / step_size),
    }
    cadence = Cadence(
        steps=steps,
        log_every=params.logging_steps,
        eval_every=every[params.eval_strategy] if evaluated else 0,
        save_every=_every(params.save_steps, steps),
        eval_on_start=params.eval_on_start,
    )
    per_device = params.per_device_eval_batch_size
    return Clock(
        cadence,
        step_size,
        total,
        per_device if isinstance(per_device, int) else params.batch_size,
        behind,
        tokens,
    )


def step_maker(
    params: Params,
    documents: Documents,
    rules: StepRules,
    clock: Clock,
    layout: Layout,
    rank: int,
    ranks: int,
    *,
    even: bool = False,
) -> Callable[[int], Step]:
    """Return a function that builds this rank's share of step k (from 0); `even` as in build_step.

    Not for a streamed run.
    """

    def make(step: int) -> Step:
        slots = step_slots(
            len(documents), clock.step_size, step, params.seed, clock.total, clock.behind
        )
        size = params.batch_size
        return build_step(
            slots,
            documents,
            rules.at(step),
            batch_size=size,
            layout=layout,
            rank=rank,
            ranks=ranks,
            even=even,
        )

    return make


def _every(value: float, steps: int) -> int:
    return max(1, round(value * steps)) if value < 1 else int(value)


def make_run_schedule(
    params: Params,
    optimizer: torch.optim.Optimizer,
    steps: int,
    log: Callable[[str], None],
    tokens: TokenClock | None = None,
) -> Schedule:
    """Return the learning rate of a run of `steps` updates, by the share of tokens that they hold if
    there is a token clock.

    A warm-up that is not shorter than the run is shortened, and logged.
    """
    warmup = warmup_steps(steps, share=params.warmup_ratio, number=params.warmup_steps)
    if params.warmup_steps > warmup and params.learning_rate_schedule != "constant":
        log(
            f"warmup_steps: {params.warmup_steps} is not shorter than the run of {steps}; {warmup} are used"
        )
    name, ratio = params.learning_rate_schedule, params.decay_ratio
    if tokens is None:
        return make_schedule(optimizer, name, steps, warmup, ratio)
    total, longest = tokens.after(steps), tokens.after(steps - 1)
    rising = tokens.after(warmup) if params.warmup_steps else params.warmup_ratio * total
    in_tokens = partial(rate, name, total=total, warmup=min(rising, longest), decay=ratio * total)
    return Schedule(optimizer, lambda done: in_tokens(tokens.after(done)))
