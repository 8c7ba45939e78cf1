"""Dry run of a job for `main.py check`: real files, real tokenizer, one real batch through a model.

It writes nothing. Small models are tried as they are, weights and all; for a large one, a narrow
sibling with the same vocabulary stands in, so that a check needs neither the memory nor the device
of the run.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..assembly.corpus import Log, Prepared
from ..assembly.data import Data
from ..assembly.model import base_config, make_model, named_config, with_block_size
from ..assembly.resolve import Facts, resolve
from ..assembly.rules import step_rules
from ..assembly.training_data import read_rows_alone, training_data
from ..base.errors import Code, JobError, Problem
from ..config.families import FAMILIES
from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Document
from ..data.steps import Slot
from ..models.configuration import check_family_method
from ..models.diffusion import DiffusionModel
from ..models.load import build_model
from ..models.published import REGISTRY
from ..objectives.answers import PromptDrop
from ..objectives.masked import Corruption
from ..training.memory import free_bytes
from ..training.step import Step, StepRules, step_items

PREVIEW_TIMES = (0.15, 0.5, 0.9)
SMALL = 100_000_000  # parameters up to which a model is tried as it is


def try_out(params: Params, ranks: int, notes: list[str]) -> dict[str, Any]:
    """Return the report of a dry run; append what a run would log to `notes`.

    Raises JobError with the problems of model and data together.
    """
    now("reading and tokenising the data")
    prepared = _prepare(params, notes.append)
    now("laying out the model and its steps")
    params = with_block_size(params, notes.append)
    way = training_data(params)
    data = Data(
        train=prepared.train,
        evaluation=prepared.evaluation,
        tokenizer=prepared.tokenizer,
        chat=prepared.chat,
        rules=step_rules(params, prepared.chat),
        clock=way.clock(prepared.train, prepared.chat, len(prepared.evaluation), ranks),
    )
    config = base_config(params, data.tokenizer)
    on_gpu = torch.cuda.is_available() and params.train_device != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    resolved = resolve(Facts(params=params, config=config, data=data, device=device, ranks=ranks))
    notes.extend([*resolved.lines(), *filter(None, [way.note])])
    layout = resolved.attention.layout
    step = way.first_step(data, layout, ranks)
    now("trying a step")
    small = resolved.parameters <= SMALL
    # In float32 whatever the run computes in: half precision takes a CPU minutes, and no user's
    # mistake shows only there.
    model = (
        make_model(params, data.tokenizer, torch.float32)
        if small
        else _narrow(config, len(data.tokenizer))
    )
    return {
        "steps": data.clock.cadence.steps,
        "tokens_first_step": step.tokens,
        "fill_first_step": step.fill,
        "supervised_first_step": step.supervised,
        **way.extent(data, step),
        "eval_every": data.clock.cadence.eval_every,
        "save_every": data.clock.cadence.save_every,
        "parameters": resolved.parameters,
        "trained_parameters": resolved.trained_parameters,
        "precision": str(resolved.compute).removeprefix("torch."),
        "first_loss": _try_step(model, step, data.chat.pad_id, packed=layout.packed),
        "tried": "the model itself" if small else "a narrow model of its family",
        "data": {split: report.as_json() for split, report in prepared.reports.items()},
        "memory": {
            **resolved.memory.memory.as_json(),
            "free": free_bytes(device),
            "device": device.type,
        },
        "disk": asdict(resolved.disk),
        "preview": _preview(data.train[0], data.rules, data.chat),
        "preview_row": data.train.rows[0] or "",
    }


def now(doing: str) -> None:
    """Print what the check does, for the program that waits for its answer."""
    print(doing, flush=True)


def _prepare(params: Params, log: Log) -> Prepared:
    """Tokenise the data. When the model's configuration is wrong as well, raise both problems."""
    try:
        config = named_config(params)
        check_family_method(config, params.training_method)
    except JobError as wrong_model:
        try:
            # Without any encoder's tokenizer the rows can still be read, and their format checked.
            read_rows_alone(params, log)
        except JobError as wrong_data:
            # A broken model folder takes its tokenizer with it: one mistake, one line.
            problems = [
                problem
                for problem in wrong_data.problems
                if params.tokenizer_name or problem.field != "tokenizer_name"
            ]
            raise JobError(*dict.fromkeys((*wrong_model.problems, *problems))) from wrong_data
        raise wrong_model
    return training_data(params).prepare(log)


def _narrow(config: PretrainedConfig, tokens: int) -> PreTrainedModel:
    """Build a model of the same class and vocabulary, two layers deep and 64 wide."""
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if config.model_type in REGISTRY or FAMILIES[config.model_type].decoder:
        narrow = copy.deepcopy(config)
        small |= {"num_key_value_heads": 4}
        if FAMILIES[config.model_type].decoder:
            small |= {"head_dim": 16, "vocab_size": max(config.vocab_size, tokens)}
            small["layer_types"] = ["full_attention"] * 2
        for name, value in small.items():
            setattr(narrow, name, value)
        return build_model(narrow)
    kept = {
        name: getattr(config, name)
        for name in ("vocab_size", "max_position_embeddings", "pad_token_id")
    }
    return build_model(AutoConfig.for_model(config.model_type, **kept, **small))


def _try_step(model: nn.Module, step: Step, pad_id: int, *, packed: bool) -> float:
    """Run the first micro-batch forward and backward on the CPU.

    Return its loss per masked token in nats. Raises JobError (exit 6) if that is not finite.
    """
    sums = DiffusionModel(model, pad_id, "loop" if packed else None)(step.micro_batches[0].batch)
    sums.weighted.sum().backward()
    loss = float(sums.nll.sum()) / max(1, step.micro_batches[0].batch.masked.numel())
    if not math.isfinite(loss):
        expected, fix = "a finite loss on the first batch", "Look at the model's weights."
        raise JobError(Problem("loss", expected, f"{loss}", fix, Code.NON_FINITE))
    return round(loss, 4)


def _preview(document: Document, rules: StepRules, chat: ChatFormat) -> list[dict[str, Any]]:
    """Return a document as the model sees it at a few times: runs of tokens of one kind, in order."""
    views: list[dict[str, Any]] = []
    whole = rules.undisturbed(PromptDrop)  # a dropped prompt is worth seeing
    (item,) = step_items([document], [Slot(0, 0, document.index)], whole)
    noising = rules.noising  # as it is trained, not as it is evaluated
    ids, supervised = item.ids, item.supervised
    single = whole.noise.single_time
    for t in PREVIEW_TIMES if single is None else (single,):
        levels = noising.level(item, whole.noise, t)
        (one,) = noising.corrupt(item, levels, whole.noise, whole.loss)
        if views and one.levels.mean_t != t:  # a method without noise has one view
            break
        masked = _hidden(ids, one)
        kinds = [_kind(place, document, supervised, masked) for place in range(ids.size)]
        runs: list[dict[str, Any]] = []
        for kind, group in groupby(range(ids.size), key=kinds.__getitem__):
            tokens = [int(ids[place]) for place in group]
            repeated = len(set(tokens)) == 1 and len(tokens) > 2
            shown = chat.shown(tokens[:1] if repeated else tokens) + (
                f"×{len(tokens)}" if repeated else ""
            )
            runs.append({"kind": kind, "tokens": len(tokens), "text": shown})
        views.append({"t": one.levels.mean_t, "masked": len(masked), "runs": runs})
    return views


def _hidden(ids: NDArray[np.int32], one: Corruption) -> set[int]:
    """Return the places of a document that are shown as another token, in the first noisy copy."""
    rows = one.copies
    place, copy = (rows.position, rows.copy) if rows else (np.arange(ids.size), np.ones(ids.size))
    other = (copy[one.masked] == 1) & (one.noisy[one.masked] != ids[place[one.masked]])
    return set(place[one.masked[other]].tolist())


def _kind(place: int, document: Document, supervised: NDArray[np.bool_], masked: set[int]) -> str:
    if place in masked:
        return "masked"
    if not supervised[place]:
        return "prompt"
    return "answer" if place < document.ids.size else "end"
