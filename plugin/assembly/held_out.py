"""Held-out loss of any model on any data file, by the evaluation that a run itself makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from ..base.errors import data_error, renamed_field
from ..config.methods import BASELINE, METHODS, methods_of
from ..config.params import Params
from ..config.parse import parse
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..data.packing import Layout
from ..data.prepare import encode_split
from ..models.backbones import unwrapped
from ..models.configuration import attention_pattern, block_facts
from ..models.diffusion import DiffusionModel
from ..run.facts import ModelFacts
from ..training.evaluate import BUCKETS, evaluate_sums, ratio_of_sums
from .corpus import Examples, encoding
from .precision import choose_precision
from .rules import step_rules

# Parameters that change the evaluation of a document, and the facts that hold them.
_OF_FACTS = {
    "objective": "objective",
    "mask_rate": "mask_rate",
    "mlm_replace": "mlm_replace",
    "noise_schedule": "noise_schedule",
    "loss_norm": "loss_norm",
    "eos_policy": "eos_policy",
    "eos_block_length": "eos_block_length",
}


@dataclass(frozen=True, kw_only=True)
class FileDocuments:
    """Tokenised documents of a file, and the parameters under which they are evaluated."""

    params: Params
    documents: Documents
    rows: int


def evaluated_as(
    facts: ModelFacts,
    run: Mapping[str, Any] | None,
    config: PretrainedConfig,
    *,
    max_length: int,
) -> Params:
    """Return the parameters of a model's own run, else those that its facts and attention name.

    `max_length`: where no run says it.
    """
    pattern, block = attention_pattern(config), block_facts(config)
    # A run's `auto` was chosen by a base that may be gone; the model itself has it.
    size = {"block_size": block.size} if block else {}
    if run is not None:
        return parse({**run, **size}).params
    able = [
        name
        for name in methods_of(config.model_type)
        if (METHODS[name].causal, METHODS[name].blocks) == (pattern == "causal", bool(block))
    ]
    method = facts.method if facts.method in METHODS else next(iter(able), BASELINE)
    values: dict[str, Any] = {
        "model_name": config.model_type,
        "dataset_name": "a file",
        "training_method": method,
        "max_length": max_length,
        "eval_strategy": "no",
        "publish": "last",
        **size,
    }
    if block:
        values |= {"clean_context": block.clean_context, "block_shift": block.shift}
    of_method = METHODS[method]
    for name, fact in _OF_FACTS.items():
        value = getattr(facts, fact)
        if value is not None and name not in of_method.ignored:
            values[name] = value
    if facts.objective == "mlm":
        values["training_stage"] = "pretrain"  # the only stage that has it
    if facts.time_range and facts.objective != "mlm" and "t_min" not in of_method.ignored:
        values["t_min"], values["t_max"] = facts.time_range
    if facts.loss_weight and "loss_weight_type" in of_method.options:
        values["loss_weight_type"] = facts.loss_weight
    return parse(values).params


def read_held_out(params: Params, file: str, chat: ChatFormat, limit: int | None) -> FileDocuments:
    """Tokenise the rows of a file as the eval split of a run. Raises JobError (exit 3)."""
    changed = params.model_copy(update={"dataset_name": file})
    examples = Examples(changed, lambda line: None, between_rows=lambda: None)
    with renamed_field("dataset_name", "tasks"):
        rows = list(examples("train"))
        documents, report = encode_split(rows[:limit], chat, encoding(changed))
    if not len(documents):
        dropped = ", ".join(f"{reason} ({count})" for reason, count in report.dropped.items())
        raise data_error("tasks", "rows to evaluate", f"none in {file}: {dropped or 'no rows'}")
    return FileDocuments(params=changed, documents=documents, rows=len(rows))


def held_out_loss(
    module: DiffusionModel, chat: ChatFormat, held: FileDocuments, beat: Callable[[], None]
) -> dict[str, tuple[float, float | None, int]]:
    """Return (value, standard error over documents, n) of the loss and of each bucket.

    n are the documents of the loss, and the masked tokens of a bucket. Of a single document the standard error is not known.
    """
    device = unwrapped(module.model).device
    mixed = choose_precision(held.params, torch.device(device.type)).value
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    sums = evaluate_sums(
        accelerator,
        module,
        held.documents,
        step_rules(held.params, chat),
        held.params.batch_size,
        Layout(packed=module.attention is not None),
        beat,
    )
    found = {"loss": (*_of_row(sums[-1]), len(held.documents))}
    if attention_pattern(unwrapped(module.model).config) == "causal":
        return found  # nothing is masked
    for bucket in range(BUCKETS):
        if masked := int(sums[bucket, 1]):
            name = f"loss_t{bucket * 10:02d}_{bucket * 10 + 10:02d}"
            found[name] = (*_of_row(sums[bucket]), masked)
    return found


def _of_row(row: torch.Tensor) -> tuple[float, float | None]:
    value, stderr = ratio_of_sums(row)
    return value, stderr if row[-1] > 1 else None
