"""Choice of the activations to recompute, from the memory that a run needs and a device has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..batch import Batch
from ..config.params import Params
from ..training.memory import ROOM, Memory, Setting, estimate
from .model import model_shape


@dataclass(frozen=True)
class MemoryPlan:
    """Activations to recompute, the memory that the run then needs, and the reason."""

    recompute: str
    memory: Memory
    why: str


def plan_memory(
    params: Params, config: PretrainedConfig, batch: Batch, setting: Setting, room: int
) -> MemoryPlan:
    """Plan a run whose heaviest micro-batch is `batch` for `room` free bytes."""

    def estimated(mode: str) -> Memory:
        model, saves = model_shape(params, config, setting.compute)
        return estimate(model, batch, setting, mode, four_bit_saves=saves)

    # What compiled layers keep is their compiler's choice: selective has no hold on them.
    modes = ("none", "full") if params.compile == "on" else ("none", "selective", "full")
    return choose_recompute(params.recompute, estimated, room, modes)


def choose_recompute(
    asked: str, make_estimate: Callable[[str], Memory], room: int, modes: Sequence[str]
) -> MemoryPlan:
    """Take `asked`; `auto` is the first of `modes` (the fastest first) that fits into `room` bytes,
    else the last.
    """
    if asked != "auto":
        return MemoryPlan(asked, make_estimate(asked), "as chosen")
    needs: list[str] = []
    for mode in modes:
        found = make_estimate(mode)
        needs.append(f"{mode} needs about {gb(found.peak)}")
        if found.peak <= ROOM * room or mode == modes[-1]:
            return MemoryPlan(mode, found, f"{', '.join(needs)}; {gb(room)} are free")
    raise AssertionError("the last is taken")


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
