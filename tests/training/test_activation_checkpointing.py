"""Activation checkpointing: equal numbers, less memory."""

from __future__ import annotations

import gc

import pytest
import torch
from helpers.layers import batch_of, loss_and_gradient, trained
from helpers.tiny import (
    FAMILIES,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from plugin.batch import Batch
from plugin.models.diffusion import DiffusionModel, unwrapped
from plugin.training.activation_checkpointing import set_activation_checkpointing
from plugin.training.memory import Tracker

LAYOUTS = (None, "loop")  # padded, and packed by a loop over documents
MODES = ("none", "selective", "full")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_layout = pytest.mark.parametrize("attention", LAYOUTS, ids=["padded", "packed"])


@every_family
@every_layout
@pytest.mark.parametrize("dropout", [None, 0.3], ids=["full", "lora"])
def test_checkpointing_leaves_loss_and_gradients_equal(
    family: str, attention: str | None, dropout: float | None
) -> None:
    """Dropout of the adapters included: a recomputed layer repeats its random numbers."""
    batch = batch_of(12, 0, packed=attention is not None)
    loss, slopes = loss_and_gradient(trained(family, "none", attention, dropout=dropout), batch)
    assert slopes.norm() > 0
    for mode in ("selective", "full"):
        again, found = loss_and_gradient(trained(family, mode, attention, dropout=dropout), batch)
        assert torch.equal(again, loss)
        assert torch.equal(found, slopes)


def test_checkpointed_adapter_dropout_is_active() -> None:
    module, batch = trained("bert", "full", None, dropout=0.3), batch_of(12, 0, packed=False)
    first = loss_and_gradient(module, batch)[0]
    module.eval()
    assert not torch.equal(loss_and_gradient(module, batch)[0], first)


def kept_after_forward(family: str, mode: str, attention: str | None) -> int:
    """Return the bytes of activations alive at the start of the backward pass."""
    module, batch = (
        trained(family, mode, attention, hidden_size=32),
        batch_of(40, 0, packed=attention is not None),
    )
    held = [*module.parameters(), *module.buffers()]
    gc.collect()
    with Tracker(vocabulary=-1, known={one.untyped_storage()._cdata for one in held}) as tracker:
        loss = module(batch).weighted.sum()
        kept = tracker.held["activations"]
        loss.backward()
    return kept


@pytest.mark.slow
@every_family
@every_layout
def test_selective_memory_lies_between_full_and_none(family: str, attention: str | None) -> None:
    none, selective, full = (kept_after_forward(family, mode, attention) for mode in MODES)
    assert full < 0.5 * none
    assert 1.2 * full < selective < 0.9 * none


def runs_of_a_layer(module: DiffusionModel, batch: Batch) -> int:
    """Count the runs of the last layer's first normalisation in a forward and a backward pass."""
    (*_, last) = (
        layer
        for layer in unwrapped(module.model).modules()
        if isinstance(layer, GradientCheckpointingLayer)
    )
    norm = next(part for part in last.modules() if "Norm" in type(part).__name__)
    calls: list[int] = []
    hook = norm.register_forward_hook(lambda *_: calls.append(1))
    module(batch).weighted.sum().backward()
    hook.remove()
    return len(calls)


@every_family
def test_checkpointing_recomputes_in_training_only(family: str) -> None:
    batch = batch_of(4, 0, packed=False)
    once = runs_of_a_layer(trained(family, "none", None), batch)
    module = trained(family, "full", None)
    assert runs_of_a_layer(module, batch) == 2 * once
    assert runs_of_a_layer(module.eval(), batch) == once
    set_activation_checkpointing(module.model, "none")
    assert runs_of_a_layer(module.train(), batch) == once
