"""Training loop: one optimizer step, top to bottom.

Build the step (noised, counted) -> forward and backward each micro-batch, divided by the step's
global count, times the number of ranks because DDP and FSDP2 average -> clip -> finite? -> update
-> report, evaluate, save, stop. Micro-batches never wait for the device; one small read an
optimizer step carries loss, gradient norm and everybody's wish to stop.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from ..base.errors import Code, JobError, Problem
from ..models.head import Sums
from .evaluate import BestSoFar
from .meters import Meters, Stopwatch, Totals, Window
from .seeds import seed_of
from .step import MicroBatch, Step

MOST_SKIPS = 20  # fp16 overflows in a row before the run is called broken


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """Number of optimizer steps, and after which of them to log, evaluate and save."""

    steps: int
    log_every: int
    eval_every: int  # 0 = never
    save_every: int
    eval_on_start: bool = False

    def is_last(self, done: int) -> bool:
        return done == self.steps

    def logs(self, done: int) -> bool:
        return done % self.log_every == 0 or self.is_last(done)

    def evaluates(self, done: int) -> bool:
        return self.eval_every > 0 and (done % self.eval_every == 0 or self.is_last(done))

    def saves(self, done: int) -> bool:
        return done % self.save_every == 0 or self.is_last(done)

    def owes_evaluation(self, done: int, evaluated: bool) -> bool:
        """Return whether to evaluate before the next step: at the start, or because the run stopped
        after a step whose evaluation was due.
        """
        due = self.evaluates(done) if done else self.eval_every > 0 and self.eval_on_start
        return due and not evaluated


@dataclass(frozen=True)
class Requests:
    stop: bool = False
    save: bool = False
    sample: bool = False


@dataclass(frozen=True)
class Verdict:
    """Consequences of an evaluation."""

    save: bool = False  # the weights are the best so far
    end: bool = False  # patience is exhausted: the run is complete


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop; those that take a number take the number of finished steps."""

    requests: Callable[[], Requests]  # what this rank was asked for
    log: Callable[[int, dict[str, float]], None]
    tick: Callable[[int, float, float], None]  # every step, with its loss and seconds
    evaluate: Callable[[int], Verdict]
    save: Callable[[int], None]
    sample: Callable[[int], None]
    beat: Callable[[], None] = lambda: None  # before each micro-batch, for the watchdog


@dataclass
class Progress:
    """State of a run after its finished steps; a checkpoint holds it."""

    done: int = 0
    window: Window = field(default_factory=Window)
    totals: Totals = field(default_factory=Totals)
    overflows: int = 0  # of fp16, in a row
    evaluated: bool = False  # after step `done`
    best: BestSoFar = field(default_factory=BestSoFar)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Module, optimizer and schedule as accelerate wraps them, and the settings of an update."""

    accelerator: Accelerator
    module: nn.Module
    optimizer: Any
    scheduler: Any
    max_grad_norm: float  # 0 = no clipping
    seed: int = 0  # of dropout, with step and rank: a resumed run draws what an unbroken one would


class NonFinite(JobError):
    """A step whose loss or gradient is not finite; its update was not made. Exit 6."""

    def __init__(
        self,
        problem: Problem,
        step: int,
        micro_batches: Sequence[MicroBatch],
        losses: Sequence[Sequence[float]],
    ):
        super().__init__(problem)
        self.step, self.micro_batches = step, micro_batches
        self.losses = losses  # of each micro-batch's documents, weighted sums


def train(
    trainer: Trainer,
    make_step: Callable[[int], Step],
    cadence: Cadence,
    hooks: Hooks,
    meters: Meters,
    at: Progress,
) -> bool:
    """Train from `at`, in place, until the last step, a stop, or an evaluation that ends the run.
    Return whether it was stopped.

    Raises NonFinite before an update that is not finite.
    """
    accelerator, module, optimizer = trainer.accelerator, trainer.module, trainer.optimizer
    first, saved, stop, verdict, watch = at.done, -1, False, Verdict(), meters.watch
    if cadence.owes_evaluation(at.done, at.evaluated):
        at.evaluated = True
        verdict = hooks.evaluate(at.done)
        if verdict.save:
            hooks.save(at.done)
    while at.done < cadence.steps and not (stop or verdict.end):
        began = time.perf_counter()
        watch.start()
        step = make_step(at.done)
        watch.lap("load")
        torch.manual_seed(seed_of(trainer.seed, at.done, accelerator.process_index))
        losses, weighted, correct = _forward_backward(accelerator, module, step, hooks, watch)
        norm = (
            accelerator.clip_grad_norm_(module.parameters(), trainer.max_grad_norm or math.inf)
            if step.masked
            else 0.0
        )
        loss, right, grad_norm, asked = _read(accelerator, losses, correct, norm, hooks.requests())
        loss /= step.count or 1.0
        overflow = (
            accelerator.scaler is not None and math.isfinite(loss) and not math.isfinite(grad_norm)
        )
        at.overflows = at.overflows + 1 if overflow else 0
        if (
            not math.isfinite(loss)
            or (not math.isfinite(grad_norm) and not overflow)
            or at.overflows >= MOST_SKIPS
        ):
            raise _non_finite(at.done + 1, loss, grad_norm, step.micro_batches, weighted)
        if step.masked:
            optimizer.step()  # under fp16 the scaler skips it by itself after an overflow
            optimizer.zero_grad(set_to_none=True)
        learning_rate = trainer.scheduler.get_last_lr()[0]  # this step's, before it moves
        trainer.scheduler.step()
        watch.lap("optimizer")
        watch.settle()
        at.done += 1
        at.evaluated = False
        stop = asked.stop and not cadence.is_last(at.done)  # a complete run ends as every other
        seconds = time.perf_counter() - began
        flops = meters.flops.step(step.lengths, step.masked, step.rows)
        _account(at, step, loss, right, seconds, overflow, flops)
        hooks.tick(at.done, loss, seconds)
        logs = cadence.logs(at.done)
        if logs or stop:
            size = {
                "tokens": float(at.totals.tokens),  # seen so far, of all devices
                "micro_batches": float(len(step.micro_batches)),  # of this device
            }
            at.totals.last_metrics = at.window.metrics(learning_rate, grad_norm, meters, size)
        if logs:  # a stop alone logs nothing: a run resumed here logs what the unbroken one would
            hooks.log(at.done, at.totals.last_metrics)
            at.window = Window()
        verdict = Verdict()
        if cadence.evaluates(at.done) and not stop:
            watch.start()
            at.evaluated = True
            verdict = hooks.evaluate(at.done)
            watch.lap("eval")
        if asked.sample:
            hooks.sample(at.done)
        if cadence.saves(at.done) or asked.save or stop or verdict.save or verdict.end:
            watch.start()
            hooks.save(at.done)
            watch.lap("save")
            saved = at.done
    assert at.done in (saved, first), "a run ends with a checkpoint"
    return stop


def _forward_backward(
    accelerator: Accelerator, module: nn.Module, step: Step, hooks: Hooks, watch: Stopwatch
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Return each micro-batch's share of the loss, and its documents' sums and correct tokens.

    Nothing here waits for the device.

    Gradients are those of the step's loss: divided by its global count, times the number of ranks
    because DDP averages.
    """
    losses: list[torch.Tensor] = []
    weighted: list[torch.Tensor] = []
    correct: list[torch.Tensor] = []
    module.train()
    for number, micro_batch in enumerate(step.micro_batches if step.masked else ()):
        last = number + 1 == len(step.micro_batches)
        hooks.beat()
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            with accelerator.autocast():  # a sharded module is not one that accelerate has wrapped
                sums: Sums = module(micro_batch.batch.to(accelerator.device))
            watch.lap("forward")
            loss = step.loss(sums)
            accelerator.backward(loss * (accelerator.num_processes / step.count))
            watch.lap("backward")
        losses.append(loss.detach())
        weighted.append(sums.weighted.detach())
        correct.append(sums.correct)
    return losses, weighted, correct


def _read(
    accelerator: Accelerator,
    losses: list[torch.Tensor],
    correct: list[torch.Tensor],
    norm: Any,
    asked: Requests,
) -> tuple[float, float, float, Requests]:
    """Return (loss sum, correct masked tokens, gradient norm, requests), the same on every rank:
    the only read of a step.
    """
    flags = torch.tensor([asked.stop, asked.save, asked.sample], dtype=torch.float32)
    sums = torch.stack(
        [
            sum((part.sum() for part in parts), torch.zeros((), device=accelerator.device))
            for parts in (losses, correct)
        ]
    )
    packed = torch.cat([sums.float(), flags.to(sums.device)])
    if accelerator.num_processes > 1:
        packed = cast("torch.Tensor", accelerator.reduce(packed, reduction="sum"))
    whole = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
    loss, right, stop, save, sample, grad_norm = torch.cat(
        [packed, whole.to(packed).reshape(1)]
    ).tolist()
    return loss, right, grad_norm, Requests(stop > 0, save > 0, sample > 0)


def _account(
    at: Progress,
    step: Step,
    loss: float,
    right: float,
    seconds: float,
    overflow: bool,
    flops: float,
) -> None:
    at.window.loss += loss
    at.window.steps += 1
    at.window.correct += right
    at.window.masked += step.masked
    for sums in (at.window, at.totals):
        sums.tokens += step.tokens
        sums.supervised += step.supervised
        sums.cut += step.cut
        sums.fill += step.fill
        sums.flops += flops
        sums.seconds += seconds
        sums.skipped += int(overflow or not step.masked)


def _non_finite(
    step: int,
    loss: float,
    norm: float,
    micro_batches: Sequence[MicroBatch],
    losses: Sequence[torch.Tensor],
) -> NonFinite:
    """Return the error that names the documents whose loss is not finite; any of them may have
    broken a gradient alone.
    """
    values: list[list[float]] = [sums.tolist() for sums in losses]
    named = [
        f"document {index} (t {one.levels.mean_t:.4f}, "
        f"{one.masked.size} of {one.noisy.size} tokens masked)"
        for micro_batch, found in zip(micro_batches, values, strict=False)
        for index, one, value in zip(
            micro_batch.documents, micro_batch.corruptions, found, strict=False
        )
        if not math.isfinite(value)
    ]
    what = f"loss {loss:g}, gradient norm {norm:g} at step {step}"
    where = f": {'; '.join(named[:5])}" if named else ""
    fix = "The update was not made. Lower learning_rate, or look at these rows."
    return NonFinite(
        Problem("loss", "a finite loss and gradient", what + where, fix, Code.NON_FINITE),
        step,
        micro_batches,
        values,
    )
