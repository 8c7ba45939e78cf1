"""Forward pass of LoRA's linear layers as one operator with its own backward.

It gives peft's result with fewer launches: low-rank products are added where the base's are
accumulated, the scale meets tensors of width r alone, and the adapter's input is never copied to
float32. So it makes products alone, and no pass over activations of full width. peft keeps the
weights, their names, merging and the file format.

N rows, I and O widths of input and output, r rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F


def use_lean_forward(model: nn.Module) -> None:
    """Replace the forward pass of every adapted linear layer of `model`, in place.

    Layers with dropout keep peft's, since their adapter has an input of its own.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            module.cast_input_dtype_enabled = False  # autocast chooses the dtype
            if all(isinstance(drop, nn.Identity) for drop in module.lora_dropout.values()):
                module.__class__ = _lean(type(module))


@cache
def _lean(kind: type) -> type:
    """Return the subclass of peft's layer (plain or 4-bit) with the lean forward pass."""
    return type(f"Lean{kind.__name__}", (kind,), {"forward": _forward})


def _forward(layer: Any, x: Tensor) -> Tensor:
    """Return W x + b + scale * B A x of one layer and its one adapter, [..., O]."""
    if layer.disable_adapters or layer.merged:  # peft's own class knows what then to do
        return type(layer).__mro__[1].forward(layer, x)
    base, (name,) = layer.get_base_layer(), layer.active_adapters
    low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else low.dtype
    if type(base) is nn.Linear and not base.weight.requires_grad and base.bias is None:
        return _Adapted.apply(x, None, base.weight, low, high, layer.scaling[name], dtype)
    return _Adapted.apply(x, base(x), None, low, high, layer.scaling[name], dtype)


class _Adapted(torch.autograd.Function):
    """(x [..., I], base output [..., O] or None, frozen weight [O, I] or None, A [r, I], B [O, r]).

    Returns the adapted output [..., O]. The base's product is computed here if `weight` is given,
    so that both gradients of x are accumulated in one product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        out: Tensor | None,
        weight: Tensor | None,
        low: Tensor,
        high: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows, a, b = x.to(dtype).flatten(0, -2), low.to(dtype), high.to(dtype)
            if weight is not None:
                base = F.linear(rows, weight.to(dtype))
            else:
                assert out is not None
                base = out.flatten(0, -2)
            inner = F.linear(rows, a) * scale  # [N, r]
            mixed = (
                torch.addmm(base, inner, b.T)
                if base.dtype == dtype
                else base + (inner @ b.T).to(base.dtype)  # a 4-bit layer may give float32
            )
        ctx.save_for_backward(rows, inner, weight, low, high)
        ctx.scale, ctx.dtype, ctx.of_x, ctx.of_out = scale, dtype, x.dtype, out is not None
        return mixed.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, inner, weight, low, high = ctx.saved_tensors
        dtype = ctx.dtype
        with torch.autocast(slope.device.type, enabled=False):
            s = slope.to(dtype).flatten(0, -2)  # [N, O]
            of_inner = (s @ high.to(dtype)) * ctx.scale  # [N, r]
            of_high = s.T @ inner
            of_low = of_inner.T @ rows
            of_x = None
            if ctx.needs_input_grad[0]:
                a = low.to(dtype)
                of_x = (
                    torch.mm(of_inner, a)
                    if weight is None
                    else torch.addmm(s @ weight.to(dtype), of_inner, a)
                )
                of_x = of_x.to(ctx.of_x).unflatten(0, slope.shape[:-1])
        of_out = slope if ctx.of_out else None
        return of_x, of_out, None, of_low.to(low.dtype), of_high.to(high.dtype), None, None
