"""Activation checkpointing: activations of a layer recomputed in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ..models.backbones import layers_of, unwrapped

_aten = torch.ops.aten

# `selective` keeps attention and products over at least this number of terms, which are nearly all
# of a layer's operations. Norms, rotations, gates and the thin products of adapters are recomputed:
# they cost little, and an adapter's output is as large as its layer's.
_TERMS = 256
# Product -> the argument whose last dimension is the terms.
_PRODUCTS = {_aten.mm.default: 0, _aten.addmm.default: 1, _aten.bmm.default: 0}
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


@dataclass(frozen=True)
class Recompute:
    """Activations that the backward pass recomputes.

    `none` keeps all of them, `full` only the input of each layer, `selective` also attention and
    thick products.
    """

    mode: str  # none, selective or full
    # The number of the model's first layers that are recomputed, None for all. The backward pass
    # reaches the first layers last. What the other layers kept is freed by then, and makes room for
    # what is recomputed.
    layers: int | None = None

    def __str__(self) -> str:
        if self.layers is None:
            return self.mode
        return (
            f"{self.mode} in the first {f'{self.layers} layers' if self.layers != 1 else 'layer'}"
        )


NONE, SELECTIVE, FULL = Recompute("none"), Recompute("selective"), Recompute("full")


def _policy(
    attention: set[Any], context: Any, operation: Any, *args: Any, **named: Any
) -> CheckpointPolicy:
    thick = operation in _PRODUCTS and args[_PRODUCTS[operation]].shape[-1] >= _TERMS
    return (
        CheckpointPolicy.MUST_SAVE
        if thick or operation in attention
        else CheckpointPolicy.PREFER_RECOMPUTE
    )


def set_activation_checkpointing(
    model: nn.Module, recompute: Recompute, *, draws: bool = True
) -> None:
    """Choose the activations that the model's layers keep for the backward pass, in place.

    With `draws` a recomputed layer repeats its random numbers (LoRA's dropout).
    """
    plain: Any = unwrapped(model)
    if recompute.mode == "none":
        plain.activation_checkpointing_disable()
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
    if recompute.mode == "selective":
        options["context_fn"] = partial(
            create_selective_checkpoint_contexts, partial(_policy, _ATTENTION | _varlen())
        )
    plain.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    if recompute.layers is not None:
        kept: list[Any] = list(layers_of(model)[recompute.layers :])
        for layer in kept:
            layer.gradient_checkpointing = False


def _varlen() -> set[Any]:
    """Return the operation of varlen attention, if this torch has it."""
    try:
        import torch.nn.attention.varlen  # registers the operation
    except ImportError:
        return set()
    return {torch.ops.torch_attn._varlen_attn.default}
