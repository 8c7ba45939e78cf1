"""Two gloo ranks of one process: a sharded model, trained, gathered, scattered, trained on.

Prints one JSON object, which test_sharding.py reads. It is a separate program, since a process that
has used torch's autograd cannot be forked.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from helpers.tiny import PAD, in_order, pairs, rules, tiny_model, weights
from torch import distributed as dist

from plugin.models.diffusion import DiffusionModel
from plugin.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from plugin.training.sharding import gathered_model, gathered_optimizer, meta_copy, shard
from plugin.training.step import Step, build_step

DOCUMENTS = pairs((4, 40), *[(2, 4)] * 7)
RANKS, FIRST, THEN = 2, 3, 2
torch.set_num_threads(1)


def fresh_model() -> Any:
    """Return a model with an odd number of rows, so that the ranks' parts differ in size.

    It has no biases: the gradient of a key's bias is rounding errors, which Adam would amplify.
    """
    return tiny_model("llada", embedding_size=49)


def step(rank: int, ranks: int, *, even: bool) -> Step:
    return build_step(
        in_order(DOCUMENTS), DOCUMENTS, rules(), batch_size=3, rank=rank, ranks=ranks, even=even
    )


def train(
    module: DiffusionModel, optimizer: torch.optim.Optimizer, own: Step, ranks: int, updates: int
) -> None:
    for _ in range(updates):
        for micro_batch in own.micro_batches:
            (module(micro_batch.batch).weighted.sum() * (ranks / own.count)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def made(model: Any, parallel: str | None) -> tuple[DiffusionModel, torch.optim.Optimizer]:
    module = DiffusionModel(model, PAD)
    if parallel:
        shard(module, torch.device("cpu"), RANKS, parallel, None)
    return module, make_optimizer(
        module, kind="adamw", learning_rate=1e-2, weight_decay=0.1, seed=0
    )


def alone() -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """Return the model after the first updates, its optimizer's tensors, and the final weights.

    One process makes all updates.
    """
    model = fresh_model()
    module, optimizer = made(model, None)
    train(module, optimizer, step(0, 1, even=False), 1, FIRST)
    middle, states = weights(model), optimizer_tensors(optimizer)
    again = fresh_model()
    again.load_state_dict(model.state_dict())
    module, fresh = made(again, None)
    restore_optimizer(fresh, states)
    train(module, fresh, step(0, 1, even=False), 1, THEN)
    return middle, states, weights(again)


def together(
    rank: int, parallel: str, reference: tuple[Any, dict[str, torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    middle, states, end = reference
    model = fresh_model()
    before, empty = weights(model), meta_copy(model)
    module, optimizer = made(model, parallel)
    train(module, optimizer, step(rank, RANKS, even=True), RANKS, FIRST)
    whole, tensors = gathered_model(model, empty), gathered_optimizer(optimizer)
    assert (whole is not None) == bool(tensors) == (rank == 0)

    held = [None, None] if rank else [whole.state_dict(), tensors]
    dist.broadcast_object_list(held, 0)
    saved, tensors = held
    again = fresh_model()
    again.load_state_dict(saved)
    empty = meta_copy(again)
    module, fresh = made(again, parallel)
    restore_optimizer(fresh, tensors)
    back = gathered_optimizer(fresh)
    train(module, fresh, step(rank, RANKS, even=True), RANKS, THEN)
    after = gathered_model(again, empty)
    if rank:
        return {}
    assert whole is not None
    assert after is not None
    assert tensors.keys() == states.keys()
    same = back.keys() == tensors.keys() and all(
        torch.equal(back[name], tensors[name]) for name in tensors
    )
    return {
        "weights off": (weights(whole) - middle).abs().max().item(),
        "moved": (middle - before).abs().max().item(),
        "states": len(tensors),
        "states off": max(
            (tensors[name].float() - states[name].float()).abs().max().item() for name in states
        ),
        "scattered": "the same bits" if same else "other bits",
        "went on": (weights(after) - end).abs().max().item(),
    }


def main() -> int:
    rank = 1 if (child := os.fork()) == 0 else 0
    # A relative path: both ranks run in the test's folder.
    dist.init_process_group(
        "gloo", store=dist.FileStore("meeting", RANKS), rank=rank, world_size=RANKS
    )
    reference = alone()
    found: dict[str, Any] = {
        parallel: together(rank, parallel, reference) for parallel in ("zero2", "zero3")
    }
    found["pieces"] = [
        [len(step(one, RANKS, even=even).micro_batches) for one in (0, 1)] for even in (False, True)
    ]
    dist.barrier()
    dist.destroy_process_group()
    if rank:
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(json.dumps(found))
    return status


if __name__ == "__main__":
    sys.exit(main())
