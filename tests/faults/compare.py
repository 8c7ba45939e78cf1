"""Difference between two runs, to the last bit, except for clock times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.scenes import CLOCK, Scene
from helpers.support import read_lines


def state_of(checkpoint: Path) -> dict[str, Any]:
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    for sums in (state["window"], state["totals"]):
        sums.pop("seconds")
    last = state["totals"]["last_metrics"]
    state["totals"]["last_metrics"] = {
        name: value for name, value in last.items() if not name.startswith(CLOCK)
    }
    return state


def tensors_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def differences(ours: Scene, theirs: Scene) -> list[str]:
    """Return what differs: curves, samples, fused model, adapter, and the last checkpoint's parts.

    These parts are state, model and optimizer.
    """
    found: list[str] = []
    if ours.trace() != theirs.trace():
        found.append("metrics.jsonl")
    if read_lines(ours.folder / "samples.jsonl") != read_lines(theirs.folder / "samples.jsonl"):
        found.append("samples.jsonl")
    latest = [
        {k: v for k, v in one.json("metrics.json").items() if not k.startswith(CLOCK)}
        for one in (ours, theirs)
    ]
    if latest[0] != latest[1]:
        found.append("metrics.json")
    mine, yours = ours.last_checkpoint(), theirs.last_checkpoint()
    if mine.name != yours.name or state_of(mine) != state_of(yours):
        found.append(f"{mine.name}/state.json")
    for one, other in (
        (mine, yours),
        *((ours.folder / name, theirs.folder / name) for name in ("adapter", "fused")),
    ):
        here, there = tensors_of(one), tensors_of(other)
        found += [
            f"{one.name}/{name}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
    return found
