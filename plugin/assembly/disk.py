"""Disk space of a run, checked before it trains."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from ..base.errors import Code, JobError, Problem
from ..config.params import Params
from .model import model_shape


@dataclass(frozen=True)
class Disk:
    """Bytes that a run holds at its peak, and those that are free."""

    needed_bytes: int
    free_bytes: int


def count_parameters(config: PretrainedConfig, params: Params) -> tuple[int, int]:
    """Return (all, trained) parameters, counted on the meta device.

    The adapter's own do not count among all: fusing removes them.
    """
    model, _ = model_shape(params, config, torch.float32)
    total = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" not in name)
    return total, sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def disk_space(params: Params, parameters: int, trained: int, *, evaluates: bool) -> Disk:
    """Return the disk space that a run needs and has, given its number of parameters.

    `evaluates`: the run has an evaluation, so that its best checkpoints are kept as well.
    """
    states = 8 * trained
    best = params.held_best if evaluates else 0
    needed = (params.save_total_limit + best + 1) * (4 * trained + states) + (
        4 * parameters if params.fuse_model else 0
    )
    existing = Path(params.run_dir).expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    return Disk(needed, shutil.disk_usage(existing).free)


def check_room(disk: Disk) -> None:
    """Raise JobError (exit 7) when the disk has less room than the run needs."""
    if disk.needed_bytes > disk.free_bytes:
        expected = f"{disk.needed_bytes / 1e9:.1f} GB of free disk"
        fix = "Free some, lower save_total_limit, or choose another run_dir."
        got = f"{disk.free_bytes / 1e9:.1f} GB"
        raise JobError(Problem("run_dir", expected, got, fix, Code.DISK))
