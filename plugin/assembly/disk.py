"""What a run will hold on disk, told before it trains: by `check` and, before it loads its model,
by `train`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from ..base.errors import Code, JobError, Problem
from ..config.params import Params
from .model import model_shape


def count_parameters(config: PretrainedConfig, params: Params) -> tuple[int, int]:
    """(all, trained) parameters, counted without memory.

    The adapter's own do not count among all: fused, they are gone.
    """
    model, _ = model_shape(params, config, torch.float32)
    total = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" not in name)
    return total, sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def check_room(params: Params, parameters: int, trained: int) -> dict[str, Any]:
    """Bytes that the run will hold at its peak. Raises JobError (exit 7) when the disk has less."""
    states = 8 * trained
    needed = (params.save_total_limit + 1) * (4 * trained + states) + (
        4 * parameters if params.fuse_model else 0
    )
    existing = Path(params.run_dir or "runs").expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        fix = "Free some, lower save_total_limit, or choose another run_dir."
        raise JobError(
            Problem(
                "run_dir",
                f"{needed / 1e9:.1f} GB of free disk",
                f"{free / 1e9:.1f} GB",
                fix,
                Code.DISK,
            )
        )
    return {"needed_bytes": needed, "free_bytes": free}
