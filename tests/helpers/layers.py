"""Tiny models with checkpointed or compiled layers, and their loss and gradient on a batch."""

from __future__ import annotations

from typing import Any

import torch
from helpers.tiny import (
    PAD,
    adapted,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_model,
)

from plugin.batch import Batch
from plugin.data.packing import Layout
from plugin.models.diffusion import DiffusionModel
from plugin.training.activation_checkpointing import Recompute, set_activation_checkpointing
from plugin.training.step import build_step

DOCUMENTS = random_documents(60, longest=26)


def batch_of(count: int, step: int, *, packed: bool) -> Batch:
    chosen = slots(count, 60, step=step)
    (micro_batch,) = build_step(
        chosen, DOCUMENTS, rules(), batch_size=count, layout=Layout(packed)
    ).micro_batches
    return micro_batch.batch


def trained(
    family: str,
    mode: str,
    attention: str | None,
    *,
    dropout: float | None = None,
    recomputed: int | None = None,
    **shape: Any,
) -> DiffusionModel:
    """Return a model that trains.

    `dropout`: of its adapter, None for a model without one. `recomputed`: the number of its first
    layers that `mode` holds for, None for all.
    """
    model: Any = tiny_model(family, **shape)
    if dropout is not None:
        model = adapted(model, family, dropout=dropout)
    set_activation_checkpointing(model, Recompute(mode, recomputed))
    return DiffusionModel(model, PAD, attention).train()


def loss_and_gradient(module: DiffusionModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)  # of LoRA's dropout
    weighted = module(batch).weighted
    weighted.sum().backward()
    found = gradient(module)
    module.zero_grad()
    return weighted.detach(), found
