"""Activation checkpointing: equal numbers, less memory."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
import torch
from helpers.layers import batch_of, loss_and_gradient, trained
from helpers.tiny import (
    FAMILIES,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from plugin.batch import Batch
from plugin.models.backbones import layers_of, unwrapped
from plugin.models.diffusion import DiffusionModel
from plugin.training.activation_checkpointing import NONE, Recompute, set_activation_checkpointing
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


@every_family
@pytest.mark.parametrize("dropout", [None, 0.3], ids=["full", "lora"])
def test_recomputing_some_layers_leaves_gradients_equal(family: str, dropout: float | None) -> None:
    batch, shape = batch_of(12, 0, packed=True), {"num_hidden_layers": 3, "dropout": dropout}
    loss, slopes = loss_and_gradient(trained(family, "none", "loop", **shape), batch)
    assert slopes.norm() > 0
    for number in (0, 1, 2):
        module = trained(family, "full", "loop", recomputed=number, **shape)
        layers: list[Any] = list(layers_of(module.model))
        wanted = [place < number for place in range(3)]
        assert [layer.gradient_checkpointing for layer in layers] == wanted
        again, found = loss_and_gradient(module, batch)
        assert torch.equal(again, loss)
        assert torch.equal(found, slopes)


def test_checkpointed_adapter_dropout_is_active() -> None:
    module, batch = trained("bert", "full", None, dropout=0.3), batch_of(12, 0, packed=False)
    first = loss_and_gradient(module, batch)[0]
    module.eval()
    assert not torch.equal(loss_and_gradient(module, batch)[0], first)


def kept_and_peak(module: DiffusionModel) -> tuple[int, int]:
    """Return the bytes of activations alive at the start of the backward pass, and the peak."""
    batch = batch_of(40, 0, packed=module.attention is not None)
    held = [*module.parameters(), *module.buffers()]
    gc.collect()
    with Tracker(vocabulary=-1, known={one.untyped_storage()._cdata for one in held}) as tracker:
        loss = module(batch).weighted.sum()
        kept = tracker.held["activations"]
        loss.backward()
    return kept, tracker.peak


@pytest.mark.slow
@every_family
@every_layout
def test_selective_memory_lies_between_full_and_none(family: str, attention: str | None) -> None:
    none, selective, full = (
        kept_and_peak(trained(family, mode, attention, hidden_size=32))[0] for mode in MODES
    )
    assert full < 0.5 * none
    assert 1.2 * full < selective < 0.9 * none


@every_family
def test_memory_falls_with_each_recomputed_layer(family: str) -> None:
    def needs(number: int) -> tuple[int, int]:
        shape = {"num_hidden_layers": 4, "hidden_size": 32}
        return kept_and_peak(trained(family, "full", "loop", recomputed=number, **shape))

    kept, peaks = zip(*map(needs, range(5)), strict=True)
    falls = [before - after for before, after in itertools.pairwise(kept)]
    assert min(falls) > 0.1 * kept[0]
    assert max(falls) < 1.3 * min(falls), "nearly linear, as the choice of their number assumes"
    assert peaks[0] > peaks[1] > peaks[2] > peaks[3]
    # The backward pass begins with the last layer: recomputed, it frees little for the others.
    assert 0.95 * peaks[4] < peaks[3]


@pytest.mark.parametrize("number", [1, 2])
def test_recomputing_the_first_layers_has_the_lowest_peak(number: int) -> None:
    shape = {"num_hidden_layers": 4, "hidden_size": 32}
    first = trained("llada", "full", "loop", recomputed=number, **shape)
    last = trained("llada", "full", "loop", **shape)
    layers: list[Any] = list(layers_of(last.model))
    for layer in layers[:-number]:
        layer.gradient_checkpointing = False
    assert kept_and_peak(first)[0] == kept_and_peak(last)[0]
    assert kept_and_peak(first)[1] < kept_and_peak(last)[1]


def test_recompute_is_named_in_a_log_line() -> None:
    assert [str(Recompute(mode)) for mode in MODES] == list(MODES)
    assert str(Recompute("full", 12)) == "full in the first 12 layers"
    assert str(Recompute("full", 1)) == "full in the first layer"


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
    set_activation_checkpointing(module.model, NONE)
    assert runs_of_a_layer(module.train(), batch) == once
