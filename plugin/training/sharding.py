"""Sharding by torch's `fully_shard` (FSDP2), and gathering of full weights and states for
checkpoints.

Every layer is a unit; what lies outside the layers (embeddings, last norm, output head) is the root
unit. A unit's weights are gathered for its forward and backward, its gradients are averaged over
the ranks in float32 and sharded again. ZeRO's stages 2 and 3 (arXiv 1910.02054) differ in whether a
layer's weights are freed between its forward and its backward. Every rank must call the functions
marked "collective"; otherwise the others hang.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models.backbones import layers_of
from ..models.diffusion import DiffusionModel, Predict
from ..models.load import keep_exact
from .optimizer import as_saved, states_of

Model = TypeVar("Model", bound=nn.Module)


def gathered_dtype(device: torch.device, compute: torch.dtype) -> torch.dtype | None:
    """Return the dtype that layers are gathered in; None keeps their own.

    In half precision a GPU gathers them in the compute dtype: autocast would keep a cast copy of
    every weight until the backward, which is the full model again. Everything else is up to
    autocast, as without sharding; only norms of layers see their weights rounded. On a CPU,
    autocast leaves LayerNorm to the dtypes it finds, and LayerNorm refuses to mix them.
    """
    return compute if compute != torch.float32 and device.type == "cuda" else None


def shard(
    module: DiffusionModel,
    device: torch.device,
    ranks: int,
    parallel: str,
    dtype: torch.dtype | None,
) -> None:
    """Shard the weights of `module` over all ranks, in place, and move this rank's shards to its
    device. Call it before the optimizer is made.

    `dtype`: see gathered_dtype.
    """
    assert parallel in ("zero2", "zero3")
    mesh = init_device_mesh(device.type, (ranks,))
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for layer in layers_of(module.model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=parallel == "zero3", mp_policy=policy)
    # The root's weights begin both forward and backward, so they are held between the two.
    root = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=root)
    register_fsdp_forward_method(module, "predict")
    # A 4-bit layer finds the scales of gathered weights by itself, but may repack those in place.
    keep_exact(module)
    for name, weight in module.named_parameters():
        assert isinstance(weight, DTensor), f"{name} was not sharded"


def reshard(module: nn.Module) -> None:
    """Free what a forward without a backward has left gathered. Does nothing to a replicated
    module.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def shared_predictor(module: DiffusionModel, compute: torch.dtype) -> Predict:
    """Return `Predictor` of a sharded module. Collective: gathers one layer at a time in addition
    to the root's weights.

    Every rank uses rank 0's logits: a last bit that differs between two devices could end one
    rank's sampling earlier.
    """

    def predict(ids: Tensor, real: Tensor, places: Tensor) -> Tensor:
        device = next(module.parameters()).device.type
        with (
            torch.no_grad(),
            torch.autocast(device, dtype=compute, enabled=compute != torch.float32),
        ):
            logits = module.predict(ids, real, places).contiguous()
        dist.broadcast(logits, 0)
        return logits

    return predict


def meta_copy(model: Model) -> Model:
    """Return a copy whose weights are on the meta device. Made before sharding, filled by
    `gathered_model`.
    """
    empty = {
        id(weight): nn.Parameter(
            torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad
        )
        for weight in model.parameters()
    }
    return copy.deepcopy(model, dict(empty))


def gathered_model(model: nn.Module, empty: Model) -> Model | None:
    """Return on rank 0 a plain model on the CPU, like `empty` but with `model`'s full weights; None
    on the others. Collective.

    Takes one copy of all weights in rank 0's main memory, and on every device that of the largest
    tensor.
    """
    reshard(model)
    keeps = dist.get_rank() == 0
    whole: dict[int, nn.Parameter] = {}
    empty_weights = dict(empty.named_parameters())
    for name, weight in model.named_parameters():  # a tied weight once
        full = _full(weight.detach())
        if keeps:
            whole[id(empty_weights[name])] = nn.Parameter(
                full.cpu(), requires_grad=weight.requires_grad
            )
    assert not keeps or len(whole) == len(empty_weights)
    return copy.deepcopy(empty, dict(whole)) if keeps else None


def shard_again(model: nn.Module, full: nn.Module | None) -> None:
    """Put the weights of `full`, a plain model on rank 0, into the shards of `model`. Collective."""
    reshard(model)
    given = dict(full.named_parameters()) if full else {}
    for name, weight in model.named_parameters():
        assert isinstance(weight, DTensor), f"{name} is not sharded"
        own = weight.to_local()
        whole = given[name].detach() if given else torch.empty(weight.shape, dtype=weight.dtype)
        shards = distribute_tensor(whole.to(own.device), weight.device_mesh, weight.placements)
        with torch.no_grad():
            own.copy_(shards.to_local())


def gathered_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return `optimizer_tensors` of the full optimizer on rank 0, nothing on the others.
    Collective.
    """
    keeps = dist.get_rank() == 0
    found: dict[str, Tensor] = {}
    for key, value in states_of(optimizer):
        full = _full(value) if isinstance(value, Tensor) else value
        if keeps:
            found[key] = as_saved(key, full)
    return found


def own_part(tensor: Tensor) -> Tensor:
    """Return the shard of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered_bytes(model: nn.Module, parallel: str, dtype: torch.dtype | None) -> tuple[int, int]:
    """Return (bytes of weights gathered at a time, bytes of the largest unit's gradients) of a
    model that is not sharded yet.

    Gathered are the root's weights and, of the layers, two under zero3 (one computes while the next
    arrives) or all under zero2. `dtype`: see gathered_dtype.
    """
    layers = [list(layer.parameters()) for layer in layers_of(model)]
    inside = {id(weight) for layer in layers for weight in layer}
    root = [weight for weight in model.parameters() if id(weight) not in inside]

    def size(weights: Iterable[Tensor], dtype: torch.dtype | None) -> int:
        return sum(weight.numel() * (dtype or weight.dtype).itemsize for weight in weights)

    sizes = sorted((size(layer, dtype) for layer in layers), reverse=True)
    held = size(root, None) + sum(sizes[:2] if parallel == "zero3" else sizes)
    learned = [
        size((weight for weight in unit if weight.requires_grad), None) for unit in (root, *layers)
    ]
    return held, max(learned)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
