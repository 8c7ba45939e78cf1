"""Facts of a trained model, which its folder holds as diffusion.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import model_error
from ..config.model_files import read_small
from .record import Number, Record

DIFFUSION_FILE = "diffusion.json"


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of the sampler; saved with the model, because they depend on its training."""

    max_new_tokens: int = 128
    block_length: int = 32
    steps: int = 32  # denoising steps of one block: block_length reveals one token a step
    # The canvas ends with the current block (eos_policy block); else it spans max_new_tokens from
    # the start.
    grow: bool = True


def token_by_token(longest: int) -> SamplerSettings:
    """Return the settings of a causal model: each block is the next token."""
    return SamplerSettings(max_new_tokens=longest, block_length=1, steps=1, grow=True)


class AdapterBase(Record):
    """The base of an adapter, so that it is never merged into another one."""

    name: str  # holds no path
    digest: str | None = None  # of its weights
    four_bit: bool = False
    dtype: str = "float32"


class ModelFacts(Record):
    """Training and sampling of a model. A model of another tool has no facts."""

    method: str | None = None
    objective: str | None = None  # mdlm or mlm
    mask_rate: Number | None = None  # of mlm, which has no schedule and no range of times
    mlm_replace: str | None = None
    noise_schedule: str | None = None
    time_range: list[Number] | None = None  # t_min, t_max
    loss_norm: str | None = None
    loss_weight: str | None = None
    perbatch_cutoff: bool | None = None
    resp_cutoff_ratio: Number | None = None
    prompt_drop: Number | None = None
    eos_policy: str | None = None
    eos_block_length: int | None = None
    sampler: SamplerSettings = SamplerSettings()
    base: AdapterBase | None = None  # of an adapter
    fuse_base: str | None = None  # of a fused model

    def content(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, exclude_none=True)


def read_facts(folder: Path) -> ModelFacts:
    """Return the facts in a model's folder; none where another tool made it.

    Raises JobError (exit 4) for a broken file.
    """
    file = folder / DIFFUSION_FILE
    try:
        return ModelFacts.read(json.loads(read_small(file))) if file.exists() else ModelFacts()
    except (OSError, ValueError, RecursionError) as error:
        raise model_error(
            "model", f"a readable {DIFFUSION_FILE}", f"{file}: {str(error)[:200]}"
        ) from error
