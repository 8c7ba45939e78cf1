"""From a trained model to a folder that works by itself: merge, write aside, reload in a fresh process, compare, publish.

Also `main.py fuse --adapter DIR --model_name BASE --out DIR`, for an adapter that was trained earlier.
"""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..assembly.verify import TOKENS, Reloaded, compare_reloaded, rendered_prompt
from ..base.errors import Code, JobError, Problem, json_line, model_error, one_line
from ..base.files import part_beside, remove, rename_whole, replace_whole
from ..base.redact import guard_streams
from ..config.families import FAMILIES
from ..config.model_files import is_own_file, refuse_missing_path
from ..models.diffusion import logits_of
from ..models.identity import base_digest, find_base, local_folder
from ..models.load import load_config, load_model, load_tokenizer, table_rows
from ..models.lora import merged_model, with_adapter
from ..models.publish import public_name, read_diffusion, write_card, write_model
from ..run.folder import local_path
from .arguments import fuse_options

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Card:
    """What the model card says beyond what `diffusion.json` holds."""

    name: str
    table: dict[str, Any]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Target:
    """A model folder to be published, and what its weights are compared with."""

    folder: Path
    base: str  # empty for a model from scratch
    tokenizer: PreTrainedTokenizerBase
    facts: dict[str, Any]  # diffusion.json
    card: Card
    trained: nn.Module  # the live model
    ids: torch.Tensor  # [S, T] to compare logits on
    replaces: bool = False  # what the run that owns the folder has published before


@dataclass(frozen=True)
class Fused:
    path: Path
    differences: dict[str, float]  # largest logit difference from the model that was trained, for each base merged onto
    chosen: str
    template: bool  # the saved chat template alone writes prompts as in training

    def as_json(self) -> dict[str, Any]:
        """`result.fuse` of run.json."""
        return {
            "path": str(self.path),
            "fuse_base": self.chosen,
            "max_logit_difference": self.differences[self.chosen],
            "differences": self.differences,
            "chat_template_as_trained": self.template,
        }


def publish(model: PreTrainedModel, target: Target) -> Reloaded:
    """Write `model` to the target's folder, whole or not at all; returns what a fresh process found there."""
    final = target.folder
    part = part_beside(final)
    try:
        found = _write_and_compare(part, model, target)
        (replace_whole if target.replaces else rename_whole)(part, final)
    finally:
        remove(part)  # of a failure or Ctrl-C; gone after the renaming
    return found


def _write_and_compare(part: Path, model: PreTrainedModel, target: Target) -> Reloaded:
    prompt = rendered_prompt(target.tokenizer)
    write_model(part, model, target.tokenizer, target.facts, base=target.base)
    if target.base and is_own_file(settings := local_folder(target.base) / "generation_config.json"):
        shutil.copy(settings, part)
    dtype = next(model.parameters()).dtype
    found = compare_reloaded(part, target.ids, logits_of(target.trained, target.ids), prompt, dtype)
    if not found.prompt:
        raise JobError(
            Problem("fuse_model", "the prompt layout trained with, after reloading", "another one", code=Code.INTERNAL)
        )
    difference = f"{found.max_logit_difference:.2e}"
    layout = "its chat template" if found.template else "main.py chat (another program may split its words otherwise)"
    checked = {"weights": str(dtype).removeprefix("torch."), "largest logit difference after reloading": difference}
    checked |= {"prompts are written as in training by": layout}
    card = target.card
    method = target.facts.get("method", "")
    write_card(part, {"name": card.name, "method": method, "table": {**card.table, **checked}, "metrics": card.metrics})
    return found


def fuse_adapter(adapter: Path, target: Target, *, four_bit: bool, fuse_base: str, dtype: torch.dtype) -> Fused:
    """Merge an adapter and publish the result. `trained`: onto the dequantised NF4 weights if the adapter was trained on those;
    `original`: onto the unquantised base, and then both differences are measured."""
    rows = len(target.tokenizer)
    onto_4bit = four_bit and fuse_base == "trained"
    merged = merged_model(target.base, adapter, four_bit=onto_4bit, dtype=dtype, embedding_rows=rows)
    found = publish(merged, target)
    differences = {fuse_base: found.max_logit_difference}
    if four_bit and fuse_base == "original":
        other = merged_model(target.base, adapter, four_bit=True, dtype=dtype, embedding_rows=rows)
        differences["trained"] = (logits_of(other, target.ids) - logits_of(target.trained, target.ids)).abs().max().item()
    return Fused(target.folder, differences, fuse_base, found.template)


def adapter_facts(base: str, *, four_bit: bool, dtype: torch.dtype) -> dict[str, Any]:
    """What an adapter remembers of its base, so that it is never merged into another one."""
    return {
        "base": {
            "name": public_name(base),
            "digest": base_digest(base),
            "four_bit": four_bit,
            "dtype": str(dtype).removeprefix("torch."),
        }
    }


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    try:
        options = fuse_options(argv)
        fused = _fuse_earlier(
            options.adapter.expanduser(), local_path(options.model_name), options.out.expanduser(), options.fuse_base
        )
    except JobError as error:
        for problem in error.problems:
            print(problem.line, file=sys.stderr)
        return error.code
    print(json_line(fused.as_json()) if options.json else f"fused model  {one_line(str(fused.path))}")
    return 0


def _fuse_earlier(adapter: Path, base: str, out: Path, fuse_base: str) -> Fused:
    refuse_missing_path("model_name", base)
    if not adapter.is_dir():
        raise model_error("adapter", "an adapter's folder, or that of a run", f"{adapter}, which is not there")
    adapter = adapter / "adapter" if (adapter / "adapter").is_dir() else adapter
    if out.is_symlink():
        got = f"{out}, which is a link to {out.readlink()}"
        raise JobError(Problem("out", "a new or empty folder", got, "Name the folder itself, or another one."))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise JobError(
            Problem("out", "a new or empty folder", f"{out}, which holds something", "Choose another folder.", Code.CONFIGURATION)
        )
    facts = read_diffusion(adapter)
    recorded = facts.get("base", {"four_bit": False, "dtype": "float32", "digest": None, "name": base})
    family = FAMILIES[load_config(base).model_type]
    find_base(adapter, recorded, base)
    tokenizer = load_tokenizer(str(adapter if (adapter / "tokenizer_config.json").is_file() else base), family=family)
    dtype = DTYPES[recorded["dtype"]]
    # merged_model checks names and shapes first; only then is the adapter put on the base as it was trained.
    merged_model(base, adapter, four_bit=False, dtype=dtype, embedding_rows=len(tokenizer))
    trained = load_model(base, dtype=dtype, four_bit=recorded["four_bit"])
    if len(tokenizer) > table_rows(trained):
        trained.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    live = with_adapter(trained, adapter)
    ids = torch.arange(min(TOKENS, len(tokenizer)))[None]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        out.rmdir()
    card = Card(out.name, {"base model": public_name(base), "adapter": public_name(str(adapter))}, {})
    target = Target(out, base, tokenizer, {key: value for key, value in facts.items() if key != "base"}, card, live, ids)
    return fuse_adapter(adapter, target, four_bit=recorded["four_bit"], fuse_base=fuse_base, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
