"""Facts of a planned model that need torch: its exact parameters, its work, and its memory.

The model is built on the meta device, so that no weight is allocated.
"""

from __future__ import annotations

from ...base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from ...assembly.memory import MemoryPlan, choose_recompute
from ...assembly.model import model_shape
from ...base.errors import JobError, Problem
from ...config.families import FAMILIES
from ...config.methods import METHODS
from ...config.params import Params
from ...models.configuration import check_family_method, new_config, switch_off_dropout
from ...models.flops import FlopCount, count_flops
from ...models.load import build_model
from ...training.activation_checkpointing import Recompute
from ...training.memory import ROOM, Memory, Setting, documents_of, estimate

COMPUTE = torch.bfloat16
SPECIAL = ("pad", "cls", "sep", "bos", "eos", "mask")


@dataclass(frozen=True)
class Counted:
    """A new model's configuration, and its parameters."""

    config: PretrainedConfig
    parameters: int  # without embeddings and head
    total: int

    @property
    def positions(self) -> int | None:
        """Return the most tokens of a document, where the model has a table of positions."""
        family = FAMILIES[self.config.model_type]
        if not family.max_positions:
            return None
        return self.config.max_position_embeddings - family.position_offset


def count_parameters_of(config_file: Path) -> Counted:
    """Count the weights that a config.json makes; a tied head counts once.

    Raises JobError (exit 4) naming model_config.
    """
    quiet_loading()
    config = new_config(str(config_file))
    for name in SPECIAL:  # a run takes them from its tokenizer
        setattr(config, f"{name}_token_id", None)
    model = _on_meta(config)
    head = FAMILIES[config.model_type].head
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outside = [
        weight
        for name, weight in model.named_parameters()
        if id(weight) not in tables and not any(name.startswith(f"{part}.") for part in head)
    ]
    return Counted(
        config,
        sum(weight.numel() for weight in outside),
        sum(weight.numel() for weight in model.parameters()),
    )


def check_method_of(counted: Counted, method: str) -> None:
    """Refuse a method that does not train this family, or whose rows depend on the data.

    Raises JobError (exit 2).
    """
    check_family_method(counted.config, method)
    if METHODS[method].blocks:
        expected, fix = "a method whose rows are documents", "`check` estimates a job of it."
        raise JobError(Problem("training_method", expected, method, fix))


def work_of(config: PretrainedConfig) -> FlopCount:
    """Return the operations of a model that is trained in full, as a run counts them for its MFU."""
    return count_flops(_on_meta(config))


def _on_meta(config: PretrainedConfig) -> Any:
    switch_off_dropout(config)
    with torch.device("meta"):
        return build_model(config)


class MemoryEstimates:
    """Memory of a planned run on GPUs of any size; each way to recompute is estimated once.

    torch has no fake GPU where it is built without CUDA. The tensors of the estimate then lie on a
    CPU, whose attention keeps the same activations document by document, and the CPU's heap is left
    out.
    """

    def __init__(self, params: Params, config: PretrainedConfig):
        self._params, self._config = params, config
        self.kernels = "cuda" if torch.cuda.is_available() else "cpu"  # of the estimate
        self._estimate = cache(self._estimated)

    def plan(self, memory: int, ranks: int) -> tuple[MemoryPlan, int]:
        """Return what is recomputed on a GPU of `memory` bytes, and the ranks that share the model.

        A full copy on each device is tried first, as a run does.
        """
        plan = self._planned(memory, 1)
        if ranks == 1 or plan.memory.peak <= ROOM * memory:
            return plan, 1
        return self._planned(memory, ranks), ranks

    def _planned(self, memory: int, ranks: int) -> MemoryPlan:
        layers = self._config.num_hidden_layers
        return choose_recompute(
            lambda recompute: self._estimate(recompute, ranks), memory, layers, compiles=True
        )

    def _estimated(self, recompute: Recompute, ranks: int) -> Memory:
        params = self._params
        model, _ = model_shape(params, self._config, COMPUTE)
        setting = Setting(
            torch.device(self.kernels),
            COMPUTE,
            "varlen" if self.kernels == "cuda" else "loop",
            params.optim,
            accumulates=params.gradient_accumulation_steps > 1,
            ranks=ranks,
            parallel="zero3" if ranks > 1 else "ddp",
        )
        share = METHODS[params.training_method].predicted
        tokens = params.batch_size * params.max_length
        batch = documents_of(tokens, params.max_length, predicted=share)
        found = estimate(model, batch, setting, recompute)
        return Memory(**{**found.as_json(), "heap": 0, "peak": found.peak - found.heap})
