"""Checkpoints: everything a run needs to go on, written aside and renamed when whole. Safetensors throughout, nothing pickled.

`checkpoint-<step>/` holds a complete model folder (it loads and chats as it is), the optimizer's state, and `state.json`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .models.publish import write_model
from .run_folder import RunFolder, rename_whole


@dataclass(frozen=True)
class State:
    """Where the run stands. Data order and noise are functions of these, so no loader or generator state is stored."""

    step: int
    pass_: int
    position: int  # documents of that pass already seen
    seed: int


def save_checkpoint(
    folder: RunFolder,
    state: State,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    diffusion: dict[str, Any],
    optimizer: dict[str, torch.Tensor],
    keep: int,
) -> Path:
    """Write checkpoint-<step> and remove the oldest beyond `keep`. A kill at any moment leaves the previous ones whole.

    `optimizer`: what optimizer_tensors gives.
    """
    final = folder / f"checkpoint-{state.step}"
    part = folder / f".checkpoint-{state.step}.part"
    shutil.rmtree(part, ignore_errors=True)
    write_model(part, model, tokenizer, diffusion)
    save_file(optimizer, part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
    rename_whole(part, final)
    for old in folder.checkpoints()[:-keep]:
        shutil.rmtree(old)
    return final
