"""Facts of a trained model, which its folder holds as diffusion.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..base.errors import model_error
from ..config.model_files import read_small
from ..config.sampler import SamplerSettings
from .record import Number, Record

DIFFUSION_FILE = "diffusion.json"


class AdapterBase(Record):
    """The base of an adapter, so that it is never merged into another one."""

    name: str  # holds no path
    digest: str | None = None  # of its weights
    four_bit: bool = False
    dtype: str = "float32"


class BlockFacts(Record):
    """Attention of a model that is denoised block by block."""

    size: int  # tokens of a block
    clean_context: str = "block"  # what the tokens of a clean block see of it: block or causal
    shift: bool = False  # state i - 1 predicts token i


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
    block: BlockFacts | None = None
    block_views: int | None = None
    mask_half_life: Number | None = None
    ar_loss_weight: Number | None = None
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
