"""`python -m plugin.assembly.verify FOLDER REFERENCE DTYPE`: load a published model in this fresh
process and compare it.

REFERENCE is a safetensors file with `ids` [S, T] and `logits` [S, T, V] of the model that was
trained, and `prompt` [T], a rendered prompt. Prints one JSON object {"max_logit_difference": x,
"prompt": bool, "template": bool}: whether the prompt has the same ids here, and by the tokenizer's
chat template as any program renders it.
"""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base.process import torch_program
from ..config.families import FAMILIES
from ..data.chat import ChatFormat
from ..data.templates.chat_template import chat_job, freeze, render_chat
from ..data.turns import Turn
from ..models.configuration import attention_pattern
from ..models.diffusion import logits_of
from ..models.load import load_model
from ..models.tokenizer import load_tokenizer

TOKENS = 64  # of a document, compared over the full vocabulary
PROMPT, MOMENT = (
    "What is the capital of France?",
    datetime(2026, 1, 1),
)  # the time that a template may write


def rendered_prompt(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int32]:
    """Return PROMPT's ids [T]; a tokenizer without a chat template is given one here."""
    return ChatFormat(tokenizer, MOMENT).prompt([Turn("user", PROMPT)])


@dataclass(frozen=True)
class Reloaded:
    """A published folder as a fresh process found it."""

    max_logit_difference: float
    prompt: bool  # a prompt is asked as in training
    template: bool  # and so by any program that renders the chat template


def compare_reloaded(
    folder: Path,
    ids: torch.Tensor,
    logits: torch.Tensor,
    prompt: NDArray[np.int32],
    dtype: torch.dtype,
) -> Reloaded:
    """Load `folder` in a fresh process and compare its logits on `ids` with `logits`, and PROMPT's
    ids with `prompt`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        tensors = {
            "ids": ids.contiguous(),
            "logits": logits.contiguous(),
            "prompt": torch.from_numpy(prompt),
        }
        save_file(tensors, reference)
        command = [
            sys.executable,
            "-P",
            "-m",
            "plugin.assembly.verify",
            str(folder),
            str(reference),
            str(dtype).removeprefix("torch."),
        ]
        environment = torch_program(os.environ)
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Reloaded(**json.loads(done.stdout.splitlines()[-1]))


def reload(folder: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Reloaded:
    """Load `folder` in this process and compare it with the `tensors` of a reference file."""
    model = load_model(str(folder), dtype=dtype)
    difference = largest_difference(model, tensors["ids"], tensors["logits"])
    tokenizer = load_tokenizer(str(folder), family=FAMILIES[model.config.model_type])
    rendered: Any = None
    if tokenizer.chat_template:
        template = freeze(str(tokenizer.get_chat_template()), MOMENT)
        (text,) = render_chat(
            tokenizer, template, [chat_job([{"role": "user", "content": PROMPT}], True)]
        )
        rendered = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            if isinstance(text, str)
            else None
        )
    asked = rendered_prompt(tokenizer)
    wanted = tensors["prompt"].tolist()
    return Reloaded(difference, prompt=asked.tolist() == wanted, template=rendered == wanted)


def largest_difference(model: PreTrainedModel, ids: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the largest difference of a model's logits on `ids` [S, T] from `logits` [S, T, V].

    That of a causal LM's mask does not count. It is never an output, and a tied head keeps the row
    of before while an adapter trains the one of the embedding.
    """
    found = (logits_of(model, ids) - logits).abs()
    if FAMILIES[model.config.model_type].decoder and attention_pattern(model.config) != "causal":
        found[..., model.config.mask_token_id] = 0
    return found.max().item()


def main(folder: str, reference: str, dtype: str) -> int:
    quiet_loading()
    print(json.dumps(asdict(reload(Path(folder), load_file(reference), getattr(torch, dtype)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
