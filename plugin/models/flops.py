"""Floating-point operations of a training step: useful work only.

Padding, unmasked rows of the head and recomputation do not count. A multiplication and an addition
are two operations. A frozen weight counts its forward and the gradient of its input (4 N a token
instead of 6 N), an adapter all three products. Attention counts the pairs of tokens within a
document, limited to its window. S documents, T tokens of a document, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..config.families import FAMILIES
from .attention import head_width
from .backbones import BACKBONES, output_projection, own_dtype, unwrapped
from .configuration import attention_pattern


@dataclass(frozen=True)
class FlopCount:
    """Operations of a model, per token and per pair of tokens."""

    body: float  # operations per token: all linear layers below the head, forward and backward
    head: float  # operations per masked token
    attention: tuple[tuple[int, int | None], ...]  # per layer: width of all heads, window or None
    causal: bool = False  # a token attends to those before it and to itself alone

    def step(
        self, lengths: Sequence[int], masked: int, rows: tuple[int, int] | None = None
    ) -> float:
        """Return the operations of forward and backward over documents of these lengths.

        `masked` is the total number of masked tokens. `rows`: tokens of the documents with their
        noisy copies, and the pairs of these that attend, in place of the lengths.
        """
        tokens = rows[0] if rows else sum(lengths)
        pairs = 0.0
        for width, window in self.attention:
            seen = rows[1] if rows else sum(self._seen(length, window) for length in lengths)
            # scores and values, two operations each; backward costs twice as much as forward
            pairs += 3 * 4 * width * seen
        return self.body * tokens + self.head * masked + pairs

    def _seen(self, length: int, window: int | None) -> int:
        """Return the pairs of tokens of a document that attend."""
        if self.causal:
            return length * (length + 1) // 2
        return length * length if window is None else _windowed(length, window)


def _windowed(length: int, window: int) -> int:
    """Count the pairs (i, j) with |i - j| <= window // 2 in a document."""
    reach = min(window // 2, length - 1)
    return length * (2 * reach + 1) - reach * (reach + 1)


def count_flops(model: nn.Module) -> FlopCount:
    """Count the operations of a model's linear layers and attention, as it is trained.

    Adapters, frozen weights, and layers whose input needs no gradient count accordingly.
    """
    plain = unwrapped(model)
    family = FAMILIES[plain.config.model_type]
    below = _without_input_gradient(plain)
    body = head = 0.0
    for name, module in plain.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        size = module.in_features * module.out_features  # a 4-bit weight's shape is its bytes'
        cost = (2 + 2 * module.weight.requires_grad + 2 * (module not in below)) * size
        if any(name == part or name.startswith(f"{part}.") for part in family.head):
            head += cost
        else:
            body += cost
    causal = attention_pattern(plain.config) == "causal"
    return FlopCount(body, head, _attention(plain.config), causal)


def _without_input_gradient(model: PreTrainedModel) -> set[nn.Module]:
    """Return the linear layers whose input needs no gradient, found by a forward of two tokens."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not inputs[0].requires_grad:
            found.add(module)

    hooks = [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    # A float32 adapter on a half-precision base needs autocast, as in the run.
    with torch.enable_grad(), own_dtype(model):
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        backbone = BACKBONES[model.config.model_type]
        output_projection(model)(backbone.transform(model, backbone.encode(model, ids, None)))
    for hook in hooks:
        hook.remove()
    return found


def _attention(config: PretrainedConfig) -> tuple[tuple[int, int | None], ...]:
    windows = [None] * config.num_hidden_layers
    if config.model_type == "modernbert":
        windows = [
            config.local_attention if kind == "sliding_attention" else None
            for kind in config.layer_types
        ]
    heads = config.num_attention_heads * head_width(config)
    return tuple((heads, window) for window in windows)
