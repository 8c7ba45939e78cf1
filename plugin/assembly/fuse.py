"""Publication of a trained model: merge, write aside, reload in a fresh process, compare,
rename.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base.errors import Code, JobError, Problem
from ..base.files import whole_folder
from ..models.checks.digest import base_digest
from ..models.diffusion import logits_of
from ..models.lora import merged_model
from ..models.publish import copy_generation_settings, public_name, write_card, write_model
from ..run.facts import AdapterBase, ModelFacts
from ..run.outcome import FuseResult
from .verify import Reloaded, compare_reloaded, largest_difference, rendered_prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Card:
    """Content of a model card in addition to `diffusion.json`."""

    name: str
    table: dict[str, Any]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Target:
    """A model folder to be published, and what its weights are compared with."""

    folder: Path
    base: str  # empty for a model from scratch
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts
    card: Card
    trained: nn.Module  # the live model
    ids: torch.Tensor  # [S, T] to compare logits on
    replaces: bool = False  # what the run that owns the folder has published before


@dataclass(frozen=True)
class Fused:
    path: Path
    differences: dict[
        str, float
    ]  # largest logit difference from the model that was trained, for each base merged onto
    chosen: str
    template: bool  # the saved chat template alone writes prompts as in training

    @property
    def result(self) -> FuseResult:
        """Return `result.fuse` of run.json."""
        return FuseResult(
            path=str(self.path),
            fuse_base=self.chosen,
            max_logit_difference=self.differences[self.chosen],
            differences=self.differences,
            chat_template_as_trained=self.template,
        )


def publish(model: PreTrainedModel, target: Target) -> Reloaded:
    """Write `model` to the target's folder, completely or not at all. Return what a fresh process
    found there.
    """
    with whole_folder(target.folder, replaces=target.replaces) as part:
        return _write_and_compare(part, model, target)


def _write_and_compare(part: Path, model: PreTrainedModel, target: Target) -> Reloaded:
    prompt = rendered_prompt(target.tokenizer)
    write_model(part, model, target.tokenizer, target.facts, base=target.base)
    copy_generation_settings(part, target.base)
    dtype = next(model.parameters()).dtype
    found = compare_reloaded(part, target.ids, logits_of(target.trained, target.ids), prompt, dtype)
    if not found.prompt:
        raise JobError(
            Problem(
                "fuse_model",
                "the prompt layout trained with, after reloading",
                "another one",
                code=Code.INTERNAL,
            )
        )
    difference = f"{found.max_logit_difference:.2e}"
    layout = (
        "its chat template"
        if found.template
        else "main.py chat (another program may split its words otherwise)"
    )
    checked = {
        "weights": str(dtype).removeprefix("torch."),
        "largest logit difference after reloading": difference,
    }
    checked |= {"prompts are written as in training by": layout}
    card = target.card
    method = target.facts.method or ""
    write_card(
        part,
        {
            "name": card.name,
            "method": method,
            "table": {**card.table, **checked},
            "metrics": card.metrics,
        },
    )
    return found


def fuse_adapter(
    adapter: Path, target: Target, *, four_bit: bool, fuse_base: str, dtype: torch.dtype
) -> Fused:
    """Merge an adapter and publish the result. `trained`: onto the dequantised NF4 weights if the
    adapter was trained on those; `original`: onto the unquantised base, and then both differences
    are measured.
    """
    onto_4bit = four_bit and fuse_base == "trained"
    merged = merged_model(
        target.base, adapter, four_bit=onto_4bit, dtype=dtype, tokenizer=target.tokenizer
    )
    found = publish(merged, target)
    differences = {fuse_base: found.max_logit_difference}
    if four_bit and fuse_base == "original":
        other = merged_model(
            target.base, adapter, four_bit=True, dtype=dtype, tokenizer=target.tokenizer
        )
        differences["trained"] = largest_difference(
            other, target.ids, logits_of(target.trained, target.ids)
        )
    return Fused(target.folder, differences, fuse_base, found.template)


def adapter_base(base: str, *, four_bit: bool, dtype: torch.dtype) -> AdapterBase:
    """Return what identifies the base of an adapter, so that it is never merged into another one."""
    return AdapterBase(
        name=public_name(base),
        digest=base_digest(base),
        four_bit=four_bit,
        dtype=str(dtype).removeprefix("torch."),
    )
