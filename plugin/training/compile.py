"""Compilation of a model's layers, each as a function of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from ..models.attention import NAME, document_attention
from ..models.backbones import layers_of

# Attention backends that read each batch's documents in Python: traced, they would be compiled
# again for every batch. flex compiles itself, for training and evaluation once each; its mask, made
# once a micro-batch, is no part of a layer.
_UNTRACED = ("loop", "dense", "flex")


def compile_layers(
    model: nn.Module, attention: str | None, *, may_fail: bool, backend: str = "inductor"
) -> int:
    """Compile each layer in place and return the number of layers.

    `attention`: the run's backend of models/attention.py, None for padded rows. It becomes part of
    the layer's graph; `loop`, `dense` and `flex` split that in two. The names of weights stay.
    Layers share their code, so that each kind of layer is compiled once, for any sizes. With
    `may_fail` a layer that does not compile runs uncompiled, and torch warns.
    """
    import torch._dynamo.config  # takes a second, so only a run that compiles pays for it

    torch._dynamo.config.suppress_errors = may_fail
    untraced = attention in _UNTRACED
    AttentionInterface.register(
        NAME, torch.compiler.disable(document_attention) if untraced else document_attention
    )
    layers: list[Any] = list(layers_of(model))
    compiled: dict[type, Any] = {}
    for layer in layers:
        kind = type(layer)
        if kind not in compiled:
            plain: Any = kind.forward
            # The number of tokens changes with every batch: `dynamic` avoids a first compilation
            # for a fixed one.
            compiled[kind] = torch.compile(plain.__wrapped__, backend=backend, dynamic=True)
        layer.forward = partial(_run_compiled, layer, compiled[kind])
    return len(layers)


def _run_compiled(layer: Any, compiled: Any, *inputs: Any, **options: Any) -> Any:
    """Run a compiled layer inside its activation checkpoint.

    In the other order, a call that is not traced (untraced attention) inside the checkpoint silently
    leaves the layer uncompiled.
    """
    learns = torch.is_grad_enabled()
    if inputs[0].requires_grad != learns:
        # The first layer over a frozen embedding. It would be compiled once more, to save the few
        # products of its input's gradient.
        inputs = (inputs[0].detach().requires_grad_(learns), *inputs[1:])
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(compiled, layer, **options), *inputs)
    return compiled(layer, *inputs, **options)
