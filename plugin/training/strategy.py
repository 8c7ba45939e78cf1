"""Strategies of sharing a model between ranks: replicated by DDP, or sharded by FSDP2."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from ..models.diffusion import DiffusionModel, Predict, Predictor
from .optimizer import optimizer_tensors
from .sharding import (
    gathered_dtype,
    gathered_model,
    gathered_optimizer,
    meta_copy,
    shard,
    shard_again,
    shared_predictor,
)

Model = TypeVar("Model", bound=nn.Module)


class Replicated(Generic[Model]):
    """Every rank holds the full model; there may be one rank alone."""

    even = False  # ranks may run different numbers of micro-batches
    collective = False  # rank 0 alone saves and samples

    def __init__(self, model: Model):
        self._model = model

    def place(self, module: DiffusionModel, device: torch.device, ranks: int) -> None:
        """Do nothing: accelerate moves the model."""

    def wrap(self, accelerator: Accelerator, module: nn.Module, optimizer: Any) -> tuple[Any, Any]:
        """Return module and optimizer as the loop uses them."""
        return accelerator.prepare(module, optimizer)

    def full_model(self) -> Model | None:
        """Return the model with all its weights, for rank 0."""
        return self._model

    def spread(self, full: Model | None) -> None:
        """Give every rank the weights of `full`, rank 0's result of full_model. Collective."""
        if dist.is_initialized():
            for weight in self._model.parameters():
                dist.broadcast(weight.data, 0)

    def full_optimizer(self, optimizer: Any) -> dict[str, torch.Tensor]:
        """Return `optimizer_tensors` of the full optimizer, for rank 0."""
        return optimizer_tensors(optimizer)

    def predict(self, module: DiffusionModel) -> Predict:
        """Return what samples from the model."""
        return Predictor(self._model)


class Sharded(Generic[Model]):
    """Every rank holds a shard of each weight. All its methods after `place` are collective."""

    even = True  # a forward gathers weights from all ranks
    collective = True

    def __init__(self, model: Model, parallel: str, compute: torch.dtype):
        """`parallel`: zero2 or zero3; `compute`: dtype of the products."""
        self._model, self._empty = model, meta_copy(model)
        self._parallel, self._compute = parallel, compute

    def place(self, module: DiffusionModel, device: torch.device, ranks: int) -> None:
        """Shard the weights of `module` in place, this rank's shards on its device."""
        dtype = gathered_dtype(device, self._compute)
        shard(module, device, ranks, self._parallel, dtype)

    def wrap(self, accelerator: Accelerator, module: nn.Module, optimizer: Any) -> tuple[Any, Any]:
        return module, accelerator.prepare_optimizer(optimizer, device_placement=False)

    def full_model(self) -> Model | None:
        """Return the model with all its weights on rank 0, None on the others."""
        return gathered_model(self._model, self._empty)

    def spread(self, full: Model | None) -> None:
        """Give every rank its shard of the weights of `full`, rank 0's result of full_model."""
        shard_again(self._model, full)

    def full_optimizer(self, optimizer: Any) -> dict[str, torch.Tensor]:
        """Return `optimizer_tensors` of the full optimizer on rank 0, nothing on the others."""
        return gathered_optimizer(optimizer)

    def predict(self, module: DiffusionModel) -> Predict:
        return shared_predictor(module, self._compute)
