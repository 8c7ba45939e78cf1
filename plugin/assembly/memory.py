"""Choice of the activations to recompute, from the memory that a run needs and a device has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..batch import Batch
from ..config.params import Params
from ..training.activation_checkpointing import FULL, NONE, SELECTIVE, Recompute
from ..training.memory import ROOM, Memory, Setting, estimate
from .model import model_shape


@dataclass(frozen=True)
class MemoryPlan:
    """Activations to recompute, the memory that the run then needs, and the reason."""

    recompute: Recompute
    memory: Memory
    why: str


def plan_memory(
    params: Params,
    config: PretrainedConfig,
    batch: Batch,
    setting: Setting,
    room: int,
    *,
    compiles: bool,
) -> MemoryPlan:
    """Plan a run whose heaviest micro-batch is `batch` for `room` free bytes.

    `compiles`: its layers are compiled.
    """

    def estimated(recompute: Recompute) -> Memory:
        model, saves = model_shape(params, config, setting.compute)
        return estimate(model, batch, setting, recompute, four_bit_saves=saves)

    if params.recompute != "auto":
        asked = Recompute(params.recompute)
        return MemoryPlan(asked, estimated(asked), "as chosen")
    return choose_recompute(estimated, room, config.num_hidden_layers, compiles=compiles)


def choose_recompute(
    make_estimate: Callable[[Recompute], Memory], room: int, layers: int, *, compiles: bool
) -> MemoryPlan:
    """Take the fastest choice that fits into `room` bytes, else the last.

    The choices are `none`, `selective`, `full` in as few of the model's `layers` as fit, and `full`.
    What a compiled layer keeps is its compiler's choice, so that `selective` has no hold on it.
    """
    needs: list[str] = []

    def planned(recompute: Recompute, memory: Memory) -> MemoryPlan:
        needs.append(f"{recompute} needs about {gb(memory.peak)}")
        return MemoryPlan(recompute, memory, f"{', '.join(needs)}; {gb(room)} are free")

    def fits(memory: Memory) -> bool:
        return memory.peak <= ROOM * room

    none = make_estimate(NONE)
    plan = planned(NONE, none)
    if not fits(none) and not compiles:
        plan = planned(SELECTIVE, make_estimate(SELECTIVE))
    if fits(plan.memory):
        return plan
    full = make_estimate(FULL)
    if not fits(full):
        return planned(FULL, full)
    return planned(*_fewest_layers(make_estimate, ROOM * room, (none, full), layers))


def _fewest_layers(
    make_estimate: Callable[[Recompute], Memory],
    limit: float,
    ends: tuple[Memory, Memory],
    layers: int,
) -> tuple[Recompute, Memory]:
    """Return `full` in as few layers as fit into `limit` bytes, and its memory.

    `ends` are the estimates for none of the `layers`, which does not fit, and for all, which fits.
    The memory is nearly linear in the number of layers, so that each guess lies close to the result
    and replaces a bound. Two more estimates suffice as a rule, of 0.1 to several seconds each.
    """
    (below, more), (number, found) = (0, ends[0]), (layers, ends[1])
    while number - below > 1:
        # The backward pass begins with the last layer: to recompute it frees next to nothing.
        end = min(number, layers - 1)
        share = (more.peak - limit) / (more.peak - found.peak)
        guess = below + math.ceil(share * (end - below))
        tried = min(max(guess, below + 1), number - 1)
        memory = make_estimate(Recompute("full", tried))
        if memory.peak <= limit:
            number, found = tried, memory
        else:
            below, more = tried, memory
    return (Recompute("full", number) if number < layers else FULL), found


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
