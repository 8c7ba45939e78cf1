"""`python -m plugin.models.verify FOLDER REFERENCE`: load a published model in this fresh process and compare its logits.

REFERENCE is a safetensors file with `ids` [S, T] and `logits` [S, T, V] of the model that was trained. Prints one JSON object
{"max_logit_difference": x}.
"""

from __future__ import annotations

from ..quiet import quiet_loading  # isort: skip  # before anything that imports torch

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..child import torch_program
from .diffusion import own_dtype
from .load import load_model

TOKENS = 64  # of a document, compared over the whole vocabulary


@torch.no_grad()
def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits [S, T, V] in float32 on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with own_dtype(model):
        logits = model(input_ids=ids.to(device)).logits.float().cpu()
    model.train(was_training)
    return logits


def difference_after_reload(folder: Path, ids: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> float:
    """Load `folder` in a fresh process: the largest absolute difference of its logits on `ids` from `logits`."""
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        save_file({"ids": ids.contiguous(), "logits": logits.contiguous()}, reference)
        command = [
            sys.executable,
            "-P",
            "-m",
            "plugin.models.verify",
            str(folder),
            str(reference),
            str(dtype).removeprefix("torch."),
        ]
        alone: Mapping[str, str] = {
            name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        }
        done = subprocess.run(command, env=torch_program(alone), stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["max_logit_difference"])


def main(folder: str, reference: str, dtype: str) -> int:
    quiet_loading()
    tensors = load_file(reference)
    model = load_model(folder, dtype=getattr(torch, dtype))
    difference = (logits_of(model, tensors["ids"]) - tensors["logits"]).abs().max().item()
    print(json.dumps({"max_logit_difference": difference}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
