"""Floating-point operations that a step needs, counted honestly: pads, unmasked head rows and
recomputation never count.

A multiply and an add are two operations. Of a frozen weight only forward and the gradient of its
input count (4 N instead of 6 N a token), of an adapter all three. Attention counts what a
document's own tokens see of one another, windows included. S documents, T tokens of one, M masked
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..config.families import FAMILIES
from .diffusion import FACES, bare, output_projection, own_dtype


@dataclass(frozen=True)
class FlopCount:
    """What one model costs, per token and per pair of tokens."""

    body: float  # operations per token: all linear layers below the head, forward and backward
    head: float  # operations per masked token
    attention: tuple[tuple[int, int | None], ...]  # per layer: width of all heads, window or None

    def step(self, lengths: Sequence[int], masked: int) -> float:
        """Operations of forward and backward over documents of these lengths with `masked` masked
        tokens in all.
        """
        pairs = 0.0
        for width, window in self.attention:
            seen = sum(
                length * length if window is None else _windowed(length, window)
                for length in lengths
            )
            pairs += (
                3 * 4 * width * seen
            )  # scores and values, two operations each, forward and twice that backward
        return self.body * sum(lengths) + self.head * masked + pairs


def _windowed(length: int, window: int) -> int:
    """Pairs (i, j) with |i - j| <= window // 2 in a document."""
    reach = min(window // 2, length - 1)
    return length * (2 * reach + 1) - reach * (reach + 1)


def count_flops(model: nn.Module) -> FlopCount:
    """Count the linear layers of a model as it is trained: adapters, frozen weights, and layers
    whose input needs no gradient.
    """
    plain = bare(model)
    family = FAMILIES[plain.config.model_type]
    below = _without_input_gradient(plain)
    body = head = 0.0
    for name, module in plain.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        size = (
            module.in_features * module.out_features
        )  # a 4-bit weight's own shape is that of its bytes
        cost = (2 + 2 * module.weight.requires_grad + 2 * (module not in below)) * size
        if any(name == part or name.startswith(f"{part}.") for part in family.head):
            head += cost
        else:
            body += cost
    return FlopCount(body, head, _attention(plain.config))


def _without_input_gradient(model: PreTrainedModel) -> set[nn.Module]:
    """Linear layers to whose input nothing trainable leads: a forward of two tokens tells."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not inputs[0].requires_grad:
            found.add(module)

    hooks = [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    # In half precision a float32 adapter meets the base's own dtype only under autocast, as in the
    # run.
    with torch.enable_grad(), own_dtype(model):
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        face = FACES[model.config.model_type]
        output_projection(model)(face.transform(model, face.encode(model, ids, None)))
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
    return tuple((config.hidden_size, window) for window in windows)
