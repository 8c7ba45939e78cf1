"""The dry run behind `main.py check`: real files, real tokenizer, one real batch through a model.
Writes nothing into the run.

Small models are tried as they are, weights and all; of a large one, a narrow sibling with the same
vocabulary stands in, so that a check needs neither the memory nor the device of the run.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..assembly.attention import check_fits, choose_attention, choose_compile
from ..assembly.clock import make_clock, step_maker
from ..assembly.corpus import Examples, Prepared, prepare_corpus
from ..assembly.disk import check_room, count_parameters
from ..assembly.heaviest import heaviest_batch
from ..assembly.memory import MemoryPlan, plan_memory
from ..assembly.memory_advice import check_memory
from ..assembly.model import base_config, make_model
from ..assembly.parallel import choose_parallel
from ..assembly.precision import COMPUTE, choose_precision
from ..assembly.rules import step_rules
from ..assembly.stream import EVAL_ROWS, first_step, prepare_stream
from ..base.errors import Code, JobError, Problem
from ..batch import Batch
from ..config.params import SHARDED, Params
from ..data.chat import ChatFormat
from ..data.documents import Document
from ..data.steps import Slot
from ..models.diffusion import DiffusionModel
from ..models.load import build_model, check_method, load_config, new_config
from ..models.published import REGISTRY
from ..training.memory import ROOM, Setting, free_bytes
from ..training.step import Step, StepRules, corruptions, step_items

PREVIEW_TIMES = (0.15, 0.5, 0.9)
SMALL = 100_000_000  # parameters up to which a model is tried as it is


def try_out(params: Params, ranks: int, notes: list[str]) -> dict[str, Any]:
    """What a run of these parameters would meet.

    Raises JobError with the problems of model and data together.
    """
    now("reading and tokenising the data")
    prepared = _prepare(params, notes)
    now("laying out the model and its steps")
    config = base_config(params, prepared.tokenizer)
    rules = step_rules(params, prepared.chat)
    clock = make_clock(params, len(prepared.train), len(prepared.evaluation), ranks)
    parameters, trained = count_parameters(config, params)
    device = torch.device(
        "cuda" if torch.cuda.is_available() and params.train_device != "cpu" else "cpu"
    )
    precision, why = choose_precision(params, device)
    notes.append(f"dtype: {why}")
    compute = COMPUTE[precision]
    mean_length = float(prepared.train.lengths.mean())
    attention = choose_attention(params, config, device, compute, mean_length)
    notes.append(f"attention: {attention.why}")
    for documents in (prepared.train, prepared.evaluation):
        check_fits(documents, rules, attention.layout)
    if params.streaming:
        evaluated = len(prepared.evaluation) > 0
        step = first_step(params, prepared.chat, rules, evaluated=evaluated, ranks=ranks)
        notes.append(
            "streaming: the data reported is what a run begins with; the rest is read while it trains"
        )
    else:
        step = step_maker(params, prepared.train, rules, clock, attention.layout, 0, 1)(0)
    first_rank = step_maker(params, prepared.train, rules, clock, attention.layout, 0, ranks)
    batch, several = heaviest_batch(
        params, prepared.train, rules, clock, attention.layout, ranks, first_rank
    )
    sharers = max(1, ranks // params.num_machines) if device.type == "cpu" else 1
    setting = Setting(device, compute, attention.backend, params.optim, several, sharers=sharers)
    plan = _memory(params, config, batch, setting, ranks, notes)
    notes.append(f"recompute: {plan.recompute}; {plan.why}")
    compiles, why = choose_compile(params, device, plan.recompute)
    if compiles:
        notes.append(f"compile: {why}")
    now("trying a step")
    whole = parameters <= SMALL
    # In float32 whatever the run computes in: half precision takes a CPU minutes, and no user's
    # mistake shows only there.
    model = make_model(params, prepared.tokenizer, torch.float32) if whole else _narrow(config)
    return {
        "steps": clock.plan.steps,
        "documents_per_step": len(step.lengths) if params.streaming else clock.step_size,
        "tokens_first_step": step.tokens,
        "fill_first_step": step.fill,
        "supervised_first_step": step.supervised,
        "tokens": clock.plan.steps
        * (step.tokens if params.streaming else round(mean_length * clock.step_size)),
        "passes": None
        if params.streaming
        else round(clock.step_size * clock.plan.steps / len(prepared.train), 2),
        "eval_every": clock.plan.eval_every,
        "save_every": clock.plan.save_every,
        "parameters": parameters,
        "trained_parameters": trained,
        "precision": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision],
        "first_loss": _try_step(model, step, prepared.chat.pad_id, packed=attention.layout.packed),
        "tried": "the model itself" if whole else "a narrow model of its family",
        "data": {split: report.as_json() for split, report in prepared.reports.items()},
        "memory": {**plan.memory.as_json(), "free": free_bytes(device), "device": device.type},
        "disk": check_room(params, parameters, trained),
        "preview": _preview(prepared.train[0], rules, prepared.chat),
        "preview_row": prepared.train.rows[0] or "",
    }


def now(doing: str) -> None:
    """Say what the check does, for the program that waits for its answer."""
    print(doing, flush=True)


def _memory(
    params: Params,
    config: PretrainedConfig,
    batch: Batch,
    setting: Setting,
    ranks: int,
    notes: list[str],
) -> MemoryPlan:
    """The estimate for the heaviest micro-batch of the run, the model sharded if it will be. Raises
    JobError (exit 5) when there is far too little room.
    """
    room = free_bytes(setting.device) // setting.sharers
    plan = plan_memory(params, config, batch, setting, params.recompute)
    fits = plan.memory.peak <= ROOM * room
    parallel, why = choose_parallel(
        params, ranks=ranks, on_gpu=setting.device.type == "cuda", fits=lambda: fits
    )
    if ranks > 1:
        notes.append(f"parallel: {parallel}; {why}")
    if parallel in SHARDED:
        plan = plan_memory(
            params,
            config,
            batch,
            replace(setting, ranks=ranks, parallel=parallel),
            params.recompute,
        )
    check_memory(params, plan, room)
    return plan


def _prepare(params: Params, notes: list[str]) -> Prepared:
    """The data; when the model's configuration is wrong too, both are reported."""
    try:
        config = (
            new_config(params.model_config_file)
            if params.model_config_file
            else load_config(params.model_name)
        )
        check_method(config, params.training_method)
    except JobError as wrong_model:
        try:
            # With any encoder's tokenizer missing, the rows can still be read and their layout
            # told.
            rows = Examples(params, notes.append, between_rows=lambda: None)("train")
            for _ in islice(rows, EVAL_ROWS if params.streaming else None):
                pass
        except JobError as wrong_data:
            # A broken model folder takes its tokenizer with it: one mistake, one line.
            data = [
                one
                for one in wrong_data.problems
                if params.tokenizer_name or one.field != "tokenizer_name"
            ]
            raise JobError(*dict.fromkeys((*wrong_model.problems, *data))) from wrong_data
        raise wrong_model
    prepare = prepare_stream if params.streaming else prepare_corpus
    return prepare(params, notes.append)


def _narrow(config: PretrainedConfig) -> PreTrainedModel:
    """A model of the same class and vocabulary, two layers deep and 64 wide."""
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if config.model_type in REGISTRY:
        narrow = copy.deepcopy(config)
        for name, value in (small | {"num_key_value_heads": 4}).items():
            setattr(narrow, name, value)
        return build_model(narrow)
    kept = {
        name: getattr(config, name)
        for name in ("vocab_size", "max_position_embeddings", "pad_token_id")
    }
    return build_model(AutoConfig.for_model(config.model_type, **kept, **small))


def _try_step(model: nn.Module, step: Step, pad_id: int, *, packed: bool) -> float:
    """Forward and backward of the first micro-batch, on the CPU.

    Returns its loss per masked token in nats; raises JobError (exit 6).
    """
    sums = DiffusionModel(model, pad_id, "loop" if packed else None)(step.pieces[0].batch)
    sums.weighted.sum().backward()
    loss = float(sums.nll.sum()) / max(1, step.pieces[0].batch.masked.numel())
    if not math.isfinite(loss):
        raise JobError(
            Problem(
                "loss",
                "a finite loss on the first batch",
                f"{loss}",
                "Look at the model's weights.",
                Code.NON_FINITE,
            )
        )
    return round(loss, 4)


def _preview(document: Document, rules: StepRules, chat: ChatFormat) -> list[dict[str, Any]]:
    """One document as the model sees it at a few times: runs of tokens of one kind, in order."""
    views: list[dict[str, Any]] = []
    whole = replace(
        rules.undisturbed(), prompt_drop=rules.prompt_drop
    )  # a dropped prompt is worth seeing
    ((item,), _) = step_items([document], [Slot(0, 0, document.index)], whole)
    ids, supervised = item.ids, item.supervised
    for t in PREVIEW_TIMES:
        (one,) = corruptions(item, t, whole)
        masked = set(one.masked.tolist())
        kinds = [_kind(place, document, supervised, masked) for place in range(ids.size)]
        runs: list[dict[str, Any]] = []
        for kind, group in groupby(range(ids.size), key=kinds.__getitem__):
            tokens = [int(ids[place]) for place in group]
            repeated = len(set(tokens)) == 1 and len(tokens) > 2
            shown = chat.shown(tokens[:1] if repeated else tokens) + (
                f"×{len(tokens)}" if repeated else ""
            )
            runs.append({"kind": kind, "tokens": len(tokens), "text": shown})
        views.append({"t": t, "masked": len(masked), "runs": runs})
    return views


def _kind(place: int, document: Document, supervised: NDArray[np.bool_], masked: set[int]) -> str:
    if place in masked:
        return "masked"
    if not supervised[place]:
        return "prompt"
    return "answer" if place < document.ids.size else "end"
