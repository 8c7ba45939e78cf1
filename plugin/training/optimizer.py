"""Optimizers of a run, the memory of their states, and their saved form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

# bitsandbytes' block of 8-bit states, and the size below which states stay float32
BLOCK, SMALL = 256, 4096


def make_optimizer(
    module: nn.Module, *, kind: str, learning_rate: float, weight_decay: float, seed: int
) -> torch.optim.Optimizer:
    """Return AdamW (`adamw` or `adamw_8bit`) over the trainable weights of `module`.

    Weight decay applies to matrices only.
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
    """Return the bytes of one weight's states.

    8-bit states have a float32 scale for each block of 256; those of small tensors stay float32.
    """
    count = weight.numel()
    if kind == "adamw":
        return 2 * count * weight.element_size() + 4
    if count < SMALL:
        return 8 * count
    return 2 * (count + 4 * -(-count // BLOCK))


def update_bytes(weights: Sequence[torch.Tensor], kind: str, device: torch.device) -> int:
    """Return the extra bytes that one optimizer update needs.

    None for fused AdamW; for 8-bit AdamW, the temporaries of the largest tensor.
    """
    if kind == "adamw" or not weights:
        return 0
    largest = max(weights, key=lambda weight: weight.numel())
    # float32 weight and gradient, noise, the rounded weight
    rounding = 14 if largest.dtype == torch.bfloat16 else 0
    # on a CPU bitsandbytes unpacks the states to float32
    unpacked = 24 if device.type == "cpu" else 0
    return (rounding + unpacked) * largest.numel()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimizer's states as `<parameter number>.<name>`; integers become int64 scalars.

    On a CPU the large tensors are the optimizer's own: write them before the next update.
    """
    return {key: as_saved(key, value) for key, value in states_of(optimizer)}


def states_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor | int]]:
    """Yield every state as (`<parameter number>.<name>`, value).

    The order depends on the parameters alone.
    """
    for number, weight in enumerate(trained_weights(optimizer)):
        for name, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, torch.Tensor | int):
                yield f"{number}.{name}", value


def as_saved(key: str, value: torch.Tensor | int) -> torch.Tensor:
    """Return a state as a contiguous tensor on the CPU; an integer becomes an int64 scalar."""
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int64)
    tensor = value.detach().cpu().contiguous()
    # cloned: the table that all states share, and the step, which is incremented in place
    return tensor.clone() if ".qmap" in key or not tensor.ndim else tensor


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore states from `optimizer_tensors`, given in full on every rank.

    Parameter groups and their options stay the optimizer's own. Each rank keeps its shard of a
    sharded weight's states, whatever the number of ranks that saved them.
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
    """Return the weights of all parameter groups, in the order of their saved numbers."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]
