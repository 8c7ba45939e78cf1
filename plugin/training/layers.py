"""What is done to a model's layers as a whole: activations recomputed in the backward pass, layers
compiled one by one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from ..models.attention import NAME, document_attention
from ..models.diffusion import bare

_aten = torch.ops.aten

# What `selective` keeps: attention and products over at least so many terms, nearly all of a
# layer's operations. Norms, rotations, gates and the thin products of adapters are made again: they
# cost little, and an adapter's output is as large as its layer's.
_TERMS = 256
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.addmm.default: 1,
    _aten.bmm.default: 0,
}  # which argument ends with the terms
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def _policy(
    attention: set[Any], context: Any, operation: Any, *args: Any, **named: Any
) -> CheckpointPolicy:
    thick = operation in _PRODUCTS and args[_PRODUCTS[operation]].shape[-1] >= _TERMS
    return (
        CheckpointPolicy.MUST_SAVE
        if thick or operation in attention
        else CheckpointPolicy.PREFER_RECOMPUTE
    )


def set_recompute(model: nn.Module, mode: str, *, draws: bool = True) -> None:
    """`none` keeps every activation, `full` only the input of each layer, `selective` also thick
    products and attention.

    `draws`: a recomputed layer draws the random numbers (of LoRA's dropout) it drew before.
    """
    plain: Any = bare(model)
    if mode == "none":
        plain.activation_checkpointing_disable()
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
    if mode == "selective":
        options["context_fn"] = partial(
            create_selective_checkpoint_contexts, partial(_policy, _ATTENTION | _varlen())
        )
    plain.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _varlen() -> set[Any]:
    try:
        import torch.nn.attention.varlen  # registers the operation
    except ImportError:
        return set()
    return {torch.ops.torch_attn._varlen_attn.default}


def compile_layers(model: nn.Module, *, may_fail: bool, backend: str = "inductor") -> int:
    """Compile each layer in place (names of weights stay); layers share their code, so it is
    compiled once for all. Returns how many.

    Attention stays a call of its own: one kernel already, and its documents change with every
    batch. `may_fail`: a layer that does not compile runs as it is, with torch's warning, instead of
    ending the run.
    """
    import torch._dynamo.config

    torch._dynamo.config.suppress_errors = may_fail
    AttentionInterface.register(
        NAME, torch.compiler.disable(document_attention)
    )  # importing dynamo takes a second: only here
    layers: list[Any] = list(layers_of(model))
    compiled: dict[type, Any] = {}
    for layer in layers:
        kind = type(layer)
        if kind not in compiled:
            plain: Any = kind.forward
            # Numbers of tokens change with every batch: `dynamic` spares the compilation of a
            # first, fixed one.
            compiled[kind] = torch.compile(plain.__wrapped__, backend=backend, dynamic=True)
        layer.forward = partial(_run_compiled, layer, compiled[kind])
    return len(layers)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model's layers, all of one kind, in order."""
    return [
        module for module in bare(model).modules() if isinstance(module, GradientCheckpointingLayer)
    ]


def _run_compiled(layer: Any, compiled: Any, *inputs: Any, **options: Any) -> Any:
    """A layer's forward, recomputation around what is compiled: the other way round, a call that
    cannot be compiled (attention) inside of it leaves the whole layer as it was, in silence.
    """
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(compiled, layer, **options), *inputs)
    return compiled(layer, *inputs, **options)
