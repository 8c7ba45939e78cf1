"""Data, model, optimizer and schedule of one rank, before its first step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..assembly.clock import Clock, make_run_schedule
from ..assembly.data import Data, Steps
from ..assembly.model import make_model
from ..assembly.precision import weight_dtype
from ..assembly.resolve import Resolved
from ..assembly.rules import step_rules
from ..assembly.training_data import training_data
from ..base.files import whole_folder
from ..config.families import FAMILIES
from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..models.backbones import unwrapped
from ..models.diffusion import DiffusionModel, Predict
from ..models.flops import FlopCount, count_flops
from ..models.linear.float8 import WIDTH, convert_linear_layers
from ..models.lora import MaybeAdapted
from ..models.tokenizer import load_tokenizer
from ..run.folder import RunFolder, to_json
from ..run.outcome import Truncation
from ..run.state import CheckpointState
from ..training.activation_checkpointing import NONE, set_activation_checkpointing
from ..training.compile import compile_layers
from ..training.cuda_graphs import capture_encoder
from ..training.lr_schedule import Schedule
from ..training.optimizer import make_optimizer
from ..training.strategy import Replicated, Sharded
from .reporter import Reporter

Log = Callable[[str], None]


def prepare_data(
    params: Params,
    folder: RunFolder,
    reporter: Reporter,
    between_rows: Callable[[], None],
    moment: datetime,
) -> None:
    """Tokenise into the run folder; one rank of a machine does it.

    `moment`: what a chat template takes for now. Raises JobError (exit 3 or 4).
    """
    prepared = training_data(params).prepare(reporter.log, between_rows=between_rows, moment=moment)
    with whole_folder(folder / "data") as data:
        prepared.tokenizer.save_pretrained(data / "tokenizer")
        for split, documents in (("train", prepared.train), ("eval", prepared.evaluation)):
            documents.save(data / split)
            reporter.lengths(split, documents.lengths)
        reports = {split: report.as_json() for split, report in prepared.reports.items()}
        (data / "report.json").write_text(to_json(reports), encoding="utf-8")


def load_truncation(folder: RunFolder) -> dict[str, Truncation]:
    """Return by split the fate of the rows that prepare_data read."""
    reports = json.loads((folder / "data" / "report.json").read_text(encoding="utf-8"))
    return {split: Truncation.read(report) for split, report in reports.items()}


def load_data(
    params: Params, folder: RunFolder, ranks: int, resumed: CheckpointState | None
) -> Data:
    """Map what prepare_data wrote: the same files on every rank.

    `resumed`: of the checkpoint that the run continues from.
    """
    data = folder / "data"
    train, evaluation = Documents.load(data / "train"), Documents.load(data / "eval")
    tokenizer = load_tokenizer(str(data / "tokenizer"))
    chat = ChatFormat(tokenizer)
    done = resumed.step if resumed else 0
    seen = resumed.pass_ * len(train) + resumed.position if resumed else 0
    way = training_data(params)
    return Data(
        train=train,
        evaluation=evaluation,
        tokenizer=tokenizer,
        chat=chat,
        rules=step_rules(params, chat),
        clock=way.clock(train, chat, len(evaluation), ranks, done=done, seen=seen),
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Model, optimizer and schedule of a run, and the steps to train on."""

    model: MaybeAdapted
    module: nn.Module  # the model with its loss, as accelerate wraps it
    optimizer: Any
    scheduler: Schedule
    strategy: Replicated[MaybeAdapted] | Sharded[MaybeAdapted]
    steps: Steps
    graph_bytes: int  # that CUDA graphs hold, in addition to what was foretold
    flops: FlopCount
    weight_dtype: torch.dtype
    predict: Predict


def build_training(
    params: Params,
    data: Data,
    resolved: Resolved,
    accelerator: Accelerator,
    log: Log,
    checkpoint: Path | None = None,
) -> Training:
    """Load or make the model, with the checkpoint's weights if there is one, and assemble it.

    Raises JobError (exit 2 or 4).
    """
    model = make_model(params, data.tokenizer, resolved.compute, checkpoint=checkpoint, log=log)
    return assemble_training(params, model, data, resolved, accelerator, log)


def assemble_training(
    params: Params,
    model: MaybeAdapted,
    data: Data,
    resolved: Resolved,
    accelerator: Accelerator,
    log: Log,
) -> Training:
    """Prepare `model` for training, with a new optimizer."""
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    dtype, compute = weight_dtype(params, resolved.compute), resolved.compute
    _log_tokens(data.clock, log)
    _log_model(params, model, dtype, log)
    if resolved.float8.value:
        _train_in_float8(model, log)
    strategy: Replicated[MaybeAdapted] | Sharded[MaybeAdapted] = (
        Sharded(model, resolved.parallel.value, compute) if resolved.sharded else Replicated(model)
    )
    set_activation_checkpointing(model, resolved.memory.recompute)
    flops = count_flops(model)  # before anything is compiled: it looks into the layers
    if resolved.compile.value:
        compile_layers(model, resolved.attention.backend, may_fail=params.compile == "auto")
        if cache := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
            log(f"compile: compiled code is kept in {cache}, from which later runs start sooner")
    module = DiffusionModel(
        model,
        data.chat.pad_id,
        resolved.attention.backend,
        certainty=params.certainty_weight,
    )
    strategy.place(module, device, ranks)
    optimizer = new_optimizer(params, module)
    wrapped, wrapped_optimizer = strategy.wrap(accelerator, module, optimizer)
    layout = resolved.attention.layout
    steps = training_data(params).steps(data, layout, rank, ranks, log, even=strategy.even)
    graph_bytes = 0
    if params.cuda_graphs:
        last = data.clock.cadence.steps
        graph_bytes = _capture(module, steps, last, resolved, log)
    return Training(
        model=model,
        module=wrapped,
        optimizer=wrapped_optimizer,
        scheduler=make_run_schedule(
            params, optimizer, data.clock.cadence.steps, log, data.clock.tokens
        ),
        strategy=strategy,
        steps=steps,
        graph_bytes=graph_bytes,
        flops=flops,
        weight_dtype=dtype,
        predict=strategy.predict(module),
    )


def new_optimizer(params: Params, module: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that the parameters ask for, over the trainable weights of `module`."""
    return make_optimizer(
        module,
        kind=params.optim,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        seed=params.seed,
    )


def _capture(module: DiffusionModel, steps: Steps, last: int, resolved: Resolved, log: Log) -> int:
    """Capture the encoder where nothing recomputes. Return the bytes that graphs hold."""
    if resolved.memory.recompute != NONE:
        log("cuda_graphs: off; a captured encoder keeps all activations, and they do not fit")
        return 0
    return capture_encoder(module, steps, last, resolved.compute, resolved.spare, log)


def _train_in_float8(model: MaybeAdapted, log: Log) -> None:
    converted = convert_linear_layers(model, FAMILIES[unwrapped(model).config.model_type])
    line = f"float8: {converted.layers} linear layers train in float8"
    if converted.left_out:
        line += f"; {converted.left_out} train in bfloat16, for their widths are no multiples of {WIDTH}"
    log(f"{line}; evaluation, samples and the saved model compute without it")


def _log_tokens(clock: Clock, log: Log) -> None:
    if not (tokens := clock.tokens):
        return
    steps = clock.cadence.steps
    log(f"train_tokens: {steps} steps with room for {tokens.after(steps):,} tokens")
    if tokens.ends:
        full = min(tokens.ends[-1], steps)
        log(
            f"batch_warmup_tokens: {tokens.micro_batches(0)} to {tokens.micro_batches(full)}"
            f" micro-batches a step over the first {full} steps"
        )


def _log_model(params: Params, model: nn.Module, dtype: torch.dtype, log: Log) -> None:
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    log(f"model: {trained:,} parameters train, weights kept in {str(dtype).removeprefix('torch.')}")
    if params.lora and params.lora_dropout:
        rate = f"{params.lora_dropout:g}"
        log(f"dropout: {rate} before the adapter; the loss then depends on how a step is laid out")
    else:
        log(
            "dropout: off; the masking noise is the regulariser, and the loss does not depend on"
            " the layout"
        )
