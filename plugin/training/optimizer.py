"""The optimizers a run may use, what their states take, and how these are saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

BLOCK, SMALL = (
    256,
    4096,
)  # bitsandbytes' block of 8-bit states, and the size below which states stay float32


def make_optimizer(
    module: nn.Module, *, kind: str, learning_rate: float, weight_decay: float, seed: int
) -> torch.optim.Optimizer:
    """AdamW (`adamw` or `adamw_8bit`) over what trains in `module`, weight decay on matrices
    only.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [weight for weight in trained if weight.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [weight for weight in trained if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    from .adamw_8bit import AdamW8bit, StochasticAdamW8bit  # bitsandbytes takes a second to import

    if any(weight.dtype == torch.bfloat16 for weight in trained):
        return StochasticAdamW8bit(groups, lr=learning_rate, seed=seed)
    return AdamW8bit(groups, lr=learning_rate)


def state_bytes(weight: torch.Tensor, kind: str) -> int:
    """Bytes that the states of one weight will take. 8-bit ones are in blocks of 256 with a float32
    scale; small tensors stay whole.
    """
    count = weight.numel()
    if kind == "adamw":
        return 2 * count * weight.element_size() + 4
    if count < SMALL:
        return 8 * count
    return 2 * (count + 4 * -(-count // BLOCK))


def update_bytes(weights: Sequence[torch.Tensor], kind: str, device: torch.device) -> int:
    """Bytes that an update takes besides weights, gradients and states: a fused AdamW none, an
    8-bit one those of its largest tensor.
    """
    if kind == "adamw" or not weights:
        return 0
    largest = max(weights, key=lambda weight: weight.numel())
    rounding = (
        14 if largest.dtype == torch.bfloat16 else 0
    )  # float32 weight and gradient, noise, the rounded weight
    unpacked = 24 if device.type == "cpu" else 0  # there bitsandbytes works on whole float32 states
    return (rounding + unpacked) * largest.numel()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state per parameter as `<parameter number>.<name>`; whole numbers become int64
    scalars.

    On a CPU the large ones are the optimizer's own: to be written before the next update.
    """
    return {key: as_saved(key, value) for key, value in states_of(optimizer)}


def states_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor | int]]:
    """Every state as (`<parameter number>.<name>`, value), in an order that depends on the
    parameters alone.
    """
    for number, weight in enumerate(trained_weights(optimizer)):
        for name, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, torch.Tensor | int):
                yield f"{number}.{name}", value


def as_saved(key: str, value: torch.Tensor | int) -> torch.Tensor:
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int64)
    whole = value.detach().cpu().contiguous()
    return (
        whole.clone() if ".qmap" in key or not whole.ndim else whole
    )  # a table that all share; a step counted on in place


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put tensors of `optimizer_tensors`, whole on every rank, back; groups and their options stay
    the optimizer's own.

    Of a weight that is cut over the ranks each takes its part, whoever saved them on how many.
    """
    weights = trained_weights(optimizer)
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        weight = weights[int(number)]
        if value.ndim == 0 and value.dtype == torch.int64:
            optimizer.state[weight][name] = int(value)
        elif isinstance(weight, DTensor) and value.shape == weight.shape:
            own = distribute_tensor(
                value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
            )
            optimizer.state[weight][name] = own.to(weight.device, copy=True)
        else:
            optimizer.state[weight][name] = value.to(weight.device, copy=True)


def trained_weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]
