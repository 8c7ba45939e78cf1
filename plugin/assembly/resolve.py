"""Choices of a run: every `auto` becomes what runs, with its reason.

`check` and `train` both call `resolve`, so they decide, log and refuse alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PretrainedConfig

from ..base.errors import JobError, Problem
from ..config.methods import METHODS
from ..config.params import SHARDED, Params
from ..run.lines import counted
from ..training.loop import Cadence
from ..training.memory import ROOM, Setting, free_bytes
from .attention import (
    Attention,
    check_fits,
    check_graphs,
    choose_attention,
    choose_compile,
    estimated_backend,
)
from .choice import Choice
from .data import Data
from .disk import Disk, check_room, count_parameters, disk_space
from .memory import MemoryPlan, gb, plan_memory
from .memory_advice import check_memory
from .precision import COMPUTE, choose_float8, choose_precision
from .training_data import training_data

Published = Literal["best", "last", "average", "no"]  # no: nothing is published


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Input of all choices of a run."""

    params: Params
    config: PretrainedConfig
    data: Data
    device: torch.device
    ranks: int
    saves: bool = True  # this rank writes the checkpoints


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Every choice of one run."""

    ranks: int
    precision: Choice[str]  # accelerate's mixed_precision
    float8: Choice[bool]
    attention: Attention
    parallel: Choice[str]  # ddp, zero2 or zero3
    memory: MemoryPlan  # the activations to recompute among it
    spare: int  # bytes of a device that a plan may use and this one leaves free
    compile: Choice[bool]
    publish: Choice[Published]
    disk: Disk
    parameters: int
    trained_parameters: int

    @property
    def compute(self) -> torch.dtype:
        return COMPUTE[self.precision.value]

    @property
    def sharded(self) -> bool:
        return self.parallel.value in SHARDED

    def lines(self) -> Iterator[str]:
        """Yield the choices and their reasons as lines of a log."""
        yield f"dtype: {self.precision.why}"
        if self.float8.value:
            yield f"float8: {self.float8.why}"
        yield f"attention: {self.attention.why}"
        if self.ranks > 1:
            yield f"parallel: {self.parallel.value}; {self.parallel.why}"
        yield f"memory: about {gb(self.memory.memory.peak)} at the peak"
        yield f"recompute: {self.memory.recompute}; {self.memory.why}"
        yield f"publish: {self.publish.value} weights: {self.publish.why}"
        if self.compile.value:
            yield f"compile: {self.compile.why}"
        elif self.float8.value:
            yield "compile: off; each cast to float8 is then a pass over memory, which may cost more than float8 saves"


def resolve(facts: Facts, *, agree: Callable[[bool], bool] = lambda fits: fits) -> Resolved:
    """Decide what runs.

    `agree` turns what is true on this rank into what is true on every rank: ranks that decide
    differently would wait for one another forever. Raises JobError (exit 2, 5 or 7).
    """
    params, device, data = facts.params, facts.device, facts.data
    precision = choose_precision(params, device)
    compute = COMPUTE[precision.value]
    float8 = choose_float8(params, device, compute)
    parameters, trained = count_parameters(facts.config, params)
    check_patience(params, data.clock.cadence)
    check_noise_warmup(params, data.clock.cadence)
    evaluates = data.clock.cadence.eval_every > 0
    disk = disk_space(params, parameters, trained, evaluates=evaluates)
    if facts.saves:
        check_room(disk)
    way = training_data(params)
    attention = choose_attention(
        params,
        facts.config,
        device,
        compute,
        float(data.train.lengths.mean()),
        always_packed=way.always_packed,
    )
    publish = choose_publish(params, evaluates=evaluates)
    check_graphs(params, device, facts.ranks, attention.backend)
    for documents in (data.train, data.evaluation):
        check_fits(documents, data.rules, attention.layout)

    batch, several = way.heaviest(data, attention.layout, facts.ranks)
    # Processes on the CPU of one machine share its memory.
    sharers = max(1, facts.ranks // params.num_machines) if device.type == "cpu" else 1
    backend = estimated_backend(attention, facts.config, device, compute)
    setting = Setting(device, compute, backend, params.optim, several)
    room = free_bytes(device) // sharers
    compiled = choose_compile(params, device)
    memory = plan_memory(params, facts.config, batch, setting, room, compiles=compiled.value)
    parallel = choose_parallel(
        params,
        ranks=facts.ranks,
        on_gpu=device.type == "cuda",
        fits=lambda: agree(memory.memory.peak <= ROOM * room),
    )
    if parallel.value in SHARDED:
        sharded = replace(setting, ranks=facts.ranks, parallel=parallel.value)
        memory = plan_memory(params, facts.config, batch, sharded, room, compiles=compiled.value)
    check_memory(params, memory, room)
    return Resolved(
        ranks=facts.ranks,
        precision=precision,
        float8=float8,
        attention=attention,
        parallel=parallel,
        memory=memory,
        spare=max(0, int(ROOM * room) - memory.memory.peak),
        compile=compiled,
        publish=publish,
        disk=disk,
        parameters=parameters,
        trained_parameters=trained,
    )


def check_patience(params: Params, cadence: Cadence) -> None:
    """Raise JobError (exit 2) if patience counts evaluations and none is made during training."""
    if not params.patience or 0 < cadence.eval_every < cadence.steps:
        return
    got = f"none before the last of {counted(cadence.steps, 'step')}"
    if not cadence.eval_every:
        got = "nothing that is held out"
    fix = "Lower eval_steps, hold rows out, or set patience 0."
    raise JobError(Problem("patience", "evaluations during training", got, fix))


def check_noise_warmup(params: Params, cadence: Cadence) -> None:
    """Raise JobError (exit 2) if a run, whose length the data decide, ends in its warm-up."""
    if params.noise_warmup_steps <= cadence.steps or not METHODS[params.training_method].blocks:
        return
    expected = f"at most the {counted(cadence.steps, 'step')} of the run"
    raise JobError(Problem("noise_warmup_steps", expected, str(params.noise_warmup_steps)))


def choose_publish(params: Params, *, evaluates: bool) -> Choice[Published]:
    """Choose the weights of the result: best, last, average, or no.

    Raises JobError (exit 2) if checkpoints are to be ranked and nothing evaluates them.
    """
    if params.publish in ("best", "average") and not evaluates:
        expected = f"data to evaluate on for {params.publish}"
        raise JobError(
            Problem("publish", expected, "nothing that is held out", "Set publish auto or last.")
        )
    if not (params.fuse_model or params.lora):
        return Choice("no", "fuse_model is off, and checkpoints are all that remains")
    if params.publish == "last":
        return Choice("last", "as chosen")
    if not evaluates:
        return Choice("last", "there is no evaluation")
    if params.publish == "average":
        return Choice("average", f"the mean of the {params.held_best} best checkpoints")
    return Choice("best", "those with the lowest held-out loss, saved when they are evaluated")


def choose_parallel(
    params: Params, *, ranks: int, on_gpu: bool, fits: Callable[[], bool]
) -> Choice[str]:
    """Choose ddp, zero2 or zero3.

    `fits` returns whether a full copy of the run fits on every device; it is called only where that
    decides.
    """
    if ranks == 1:
        return Choice("ddp", "one process, nothing to share")
    if params.parallel != "auto":
        return Choice("zero3" if params.parallel == "fsdp2" else params.parallel, "as chosen")
    if not on_gpu:
        return Choice("ddp", "ranks on CPUs share one memory as it is")
    if params.optim != "adamw" or params.dtype == "float16" or params.float8:
        return Choice("ddp", "8-bit optimizers, float16 and float8 are not sharded")
    if fits():
        return Choice("ddp", "a full copy fits on each device")
    return Choice("zero3", "a full copy does not fit on each device")
