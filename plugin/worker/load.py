"""What a rank loads before its first step: data, tokenizer, rules of a step; then model, optimizer
and schedule.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..assembly.attention import Attention, check_fits, choose_attention, choose_compile
from ..assembly.clock import Clock, make_clock, make_run_schedule, step_maker
from ..assembly.corpus import prepare_corpus
from ..assembly.disk import check_room, count_parameters
from ..assembly.heaviest import heaviest_batch
from ..assembly.memory import MakePlan, MemoryPlan, plan_memory
from ..assembly.model import base_config, make_model
from ..assembly.parallel import choose_parallel
from ..assembly.precision import COMPUTE, weight_dtype
from ..assembly.rules import diffusion_facts, step_rules
from ..assembly.stream import StreamedSteps, prepare_stream, start_streaming
from ..base.files import remove, rename_whole
from ..config.params import SHARDED, Params
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..models.diffusion import DiffusionModel, Predict
from ..models.flops import FlopCount, count_flops
from ..models.load import load_tokenizer
from ..models.lora import MaybeAdapted
from ..run.folder import RunFolder, to_json
from ..training.exchange import gather_values
from ..training.layers import compile_layers, set_recompute
from ..training.lr_schedule import Schedule
from ..training.memory import ROOM, TINY, Memory, Setting, free_bytes
from ..training.optimizer import make_optimizer, optimizer_tensors
from ..training.sharding import (
    gathered_dtype,
    gathered_model,
    gathered_optimizer,
    hollow,
    shard,
    shared_predictor,
)
from ..training.step import Step, StepRules
from .checkpoints import State
from .reporter import Reporter


@dataclass(frozen=True)
class Data:
    """A run's data, as every rank has it."""

    train: Documents  # when streaming, only what the run begins with
    evaluation: Documents
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    rules: StepRules
    clock: Clock
    facts: dict[str, Any]  # diffusion.json
    truncation: dict[str, dict[str, Any]]  # split -> rows, documents, truncated, dropped
    stream: StreamedSteps | None


def prepare_data(
    params: Params,
    folder: RunFolder,
    reporter: Reporter,
    between_rows: Callable[[], None],
    moment: datetime,
) -> None:
    """Tokenise into the run folder; one rank a machine does it. `moment`: what a chat template
    takes for now.

    Raises JobError (exit 3 or 4).
    """
    prepare = prepare_stream if params.streaming else prepare_corpus
    prepared = prepare(params, reporter.log, between_rows=between_rows, moment=moment)
    data = folder / ".data.part"
    remove(data)
    prepared.tokenizer.save_pretrained(data / "tokenizer")
    for split, documents in (("train", prepared.train), ("eval", prepared.evaluation)):
        documents.save(data / split)
        reporter.lengths(split, documents.lengths)
    reports = {split: report.as_json() for split, report in prepared.reports.items()}
    (data / "report.json").write_text(to_json(reports), encoding="utf-8")
    rename_whole(data, folder / "data")


def load_data(
    params: Params,
    folder: RunFolder,
    reporter: Reporter,
    accelerator: Accelerator,
    resumed: State | None,
) -> Data:
    """Map what prepare_data wrote: the same files on every rank.

    `resumed`: of the checkpoint that the run continues from.
    """
    data = folder / "data"
    reports = json.loads((data / "report.json").read_text(encoding="utf-8"))
    kept = ("rows", "documents", "truncated", "dropped")
    truncation = {split: {key: report[key] for key in kept} for split, report in reports.items()}
    train, evaluation = Documents.load(data / "train"), Documents.load(data / "eval")
    tokenizer = load_tokenizer(str(data / "tokenizer"))
    chat = ChatFormat(tokenizer)
    rules = step_rules(params, chat)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    done = seen = 0
    stream = None
    if resumed and not params.streaming:
        done, seen = resumed.step, resumed.pass_ * len(train) + resumed.position
    if params.streaming:
        evaluated = len(evaluation) > 0
        stream = start_streaming(
            params, chat, rules, reporter.log, evaluated=evaluated, rank=rank, ranks=ranks
        )
    for split in (
        ("eval",) if params.streaming else ("train", "eval")
    ):  # what a stream read is known at the end
        reporter.data(split, truncation[split])
    return Data(
        train=train,
        evaluation=evaluation,
        tokenizer=tokenizer,
        chat=chat,
        rules=rules,
        clock=make_clock(params, len(train), len(evaluation), ranks, done=done, seen=seen),
        facts=diffusion_facts(params, rules),
        truncation=truncation,
        stream=stream,
    )


@dataclass(frozen=True)
class Trained:
    """What is trained, and how."""

    model: MaybeAdapted
    module: nn.Module  # the model with its loss, as accelerate wraps it
    optimizer: Any
    scheduler: Schedule
    attention: Attention
    make_step: Callable[[int], Step]
    flops: FlopCount
    memory: Memory | None  # the estimate
    weight_dtype: torch.dtype
    empty: MaybeAdapted | None  # of a model that is cut up: what its weights are gathered into
    predict: Predict | None  # of a model that is cut up

    @property
    def sharded(self) -> bool:
        return self.empty is not None

    def whole(self) -> MaybeAdapted | None:
        """The model with all its weights, for rank 0; a model that is cut up needs every rank to
        call this, and the others get None.
        """
        return self.model if self.empty is None else gathered_model(self.model, self.empty)

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """`optimizer_tensors`, for rank 0; called as `whole` is."""
        return (
            gathered_optimizer(self.optimizer)
            if self.sharded
            else optimizer_tensors(self.optimizer)
        )


def load_model(
    params: Params,
    data: Data,
    reporter: Reporter,
    accelerator: Accelerator,
    on_plan: Callable[[MakePlan], None],
    checkpoint: Path | None = None,
) -> Trained:
    """Load or make the model, with the checkpoint's weights if there is one, and a new optimizer.

    `on_plan` is handed what can estimate the run's memory, before memory is taken.

    Raises JobError (exit 2, 4 or 7).
    """
    compute = COMPUTE[accelerator.mixed_precision]
    config = base_config(params, data.tokenizer)
    counted = count_parameters(config, params)
    if accelerator.is_main_process:  # who saves
        check_room(params, *counted)
    attention = choose_attention(
        params, config, accelerator.device, compute, float(data.train.lengths.mean())
    )
    reporter.log(f"attention: {attention.why}")
    for documents in (data.train, data.evaluation):
        check_fits(documents, data.rules, attention.layout)
    ranks, device = accelerator.num_processes, accelerator.device

    def plan_maker(parallel: str) -> Callable[[str], MemoryPlan]:
        return _plan_maker(params, config, data, attention, accelerator, parallel)

    parallel = _choose_parallel(params, plan_maker("ddp"), reporter, accelerator)
    sharded = parallel in SHARDED
    make_step = data.stream or step_maker(
        params,
        data.train,
        data.rules,
        data.clock,
        attention.layout,
        accelerator.process_index,
        ranks,
        even=sharded,
    )
    make_plan = plan_maker(parallel)
    recompute, planned = _plan_memory(params, counted[0], make_plan, device, reporter)
    on_plan(lambda: planned or make_plan(recompute))
    compiles, why = choose_compile(params, device, recompute)

    dtype = weight_dtype(params, compute)
    model = make_model(params, data.tokenizer, compute, checkpoint=checkpoint)
    _log_model(params, model, dtype, reporter)
    empty = hollow(model) if sharded else None
    set_recompute(model, recompute)
    flops = count_flops(model)  # before anything is compiled: it looks into the layers
    if compiles:
        compile_layers(model, may_fail=params.compile == "auto")
        reporter.log(f"compile: {why}")
    module = DiffusionModel(model, data.chat.pad_id, attention.backend)
    if sharded:
        shard(module, device, ranks, parallel, gathered_dtype(device, compute))
    steps = data.clock.plan.steps
    prepared, optimizer, schedule = _prepare(
        params, module, accelerator, steps, reporter.log, sharded=sharded
    )
    estimated = planned.memory if planned else None
    predict = shared_predictor(module, compute) if sharded else None
    return Trained(
        model,
        prepared,
        optimizer,
        schedule,
        attention,
        make_step,
        flops,
        estimated,
        dtype,
        empty,
        predict,
    )


def _log_model(params: Params, model: nn.Module, dtype: torch.dtype, reporter: Reporter) -> None:
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    reporter.log(
        f"model: {trained:,} parameters train, weights kept in {str(dtype).removeprefix('torch.')}"
    )
    if params.lora and params.lora_dropout:
        reporter.log(
            f"dropout: {params.lora_dropout:g} before the adapter; the loss then depends on how a step is laid out"
        )
    else:
        reporter.log(
            "dropout: off; the masking noise is the regulariser, and the loss does not depend on the layout"
        )


def _prepare(
    params: Params,
    module: DiffusionModel,
    accelerator: Accelerator,
    steps: int,
    log: Callable[[str], None],
    *,
    sharded: bool,
) -> tuple[nn.Module, Any, Schedule]:
    """(the module, its new optimizer, both as accelerate wraps them; the schedule)."""
    optimizer = make_optimizer(
        module,
        kind=params.optim,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        seed=params.seed,
    )
    if sharded:
        prepared, wrapped = module, accelerator.prepare_optimizer(optimizer, device_placement=False)
    else:
        prepared, wrapped = accelerator.prepare(module, optimizer)
    schedule = make_run_schedule(params, optimizer, steps, log)
    return prepared, wrapped, schedule


def _choose_parallel(
    params: Params,
    replicated: Callable[[str], MemoryPlan],
    reporter: Reporter,
    accelerator: Accelerator,
) -> str:
    """ddp, zero2 or zero3, the same on every rank: those that chose differently would wait for one
    another forever.
    """
    ranks, device = accelerator.num_processes, accelerator.device

    def fits() -> bool:
        here = replicated(params.recompute).memory.peak <= ROOM * free_bytes(device)
        return all(gather_values(accelerator, here))

    parallel, why = choose_parallel(params, ranks=ranks, on_gpu=device.type == "cuda", fits=fits)
    if ranks > 1:
        reporter.log(f"parallel: {parallel}; {why}")
    return parallel


def _plan_maker(
    params: Params,
    config: PretrainedConfig,
    data: Data,
    attention: Attention,
    accelerator: Accelerator,
    parallel: str,
) -> Callable[[str], MemoryPlan]:
    """What plans the run's memory, given the recompute that is asked for."""
    compute = COMPUTE[accelerator.mixed_precision]
    ranks, device = accelerator.num_processes, accelerator.device
    cut = ranks if parallel in SHARDED else 1
    sharers = max(1, ranks // params.num_machines) if device.type == "cpu" else 1

    def plan(asked: str) -> MemoryPlan:
        first_rank = step_maker(
            params, data.train, data.rules, data.clock, attention.layout, 0, ranks
        )
        batch, several = heaviest_batch(
            params, data.train, data.rules, data.clock, attention.layout, ranks, first_rank
        )
        setting = Setting(
            device, compute, attention.backend, params.optim, several, cut, parallel, sharers
        )
        return plan_memory(params, config, batch, setting, asked)

    return plan


def _plan_memory(
    params: Params,
    parameters: int,
    make_plan: Callable[[str], MemoryPlan],
    device: torch.device,
    reporter: Reporter,
) -> tuple[str, MemoryPlan | None]:
    """(recompute mode, plan).

    A model of a few million weights on a CPU is not worth the second that asking takes.
    """
    if device.type == "cpu" and params.recompute == "auto" and parameters < TINY:
        return "none", None
    found = make_plan(params.recompute)
    reporter.log(
        f"memory: about {found.memory.peak / 1e9:.2f} GB at the peak; recompute {found.recompute}: {found.why}"
    )
    return found.recompute, found
