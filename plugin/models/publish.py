"""A model folder that works by itself: weights, tokenizer, how it was trained and is sampled, and a card for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .load import load_model

DIFFUSION_FILE = "diffusion.json"  # method, noise, loss weighting, end-of-answer policy, sampler settings


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, diffusion: dict[str, Any]) -> None:
    """Write safetensors weights, configuration, tokenizer and `diffusion.json` into a new folder."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / DIFFUSION_FILE).write_text(json.dumps(diffusion, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_diffusion(folder: Path) -> dict[str, Any]:
    """The contents of `diffusion.json`; empty for a model that another tool made."""
    file = folder / DIFFUSION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


@torch.inference_mode()
def max_logit_difference(folder: Path, model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Load `folder` anew and compare: the largest absolute difference of logits on `ids` [S, T] with the model in memory."""
    reloaded = load_model(
        str(folder), dtype=next(model.parameters()).dtype, attn_implementation=model.config._attn_implementation
    )
    was_training = model.training
    model.eval()
    ours = model(input_ids=ids.to(next(model.parameters()).device)).logits.float().cpu()
    model.train(was_training)
    return (reloaded(input_ids=ids).logits.float() - ours).abs().max().item()


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """README.md: what the model is, what it was trained on and how, what its evaluation said, how to talk to it."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [masked-diffusion, text-diffusion]",
        "---",
        f"# {facts['name']}",
        "",
        f"A text-diffusion language model, trained by masked diffusion (method `{facts['method']}`).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in facts["table"].items()),
        "",
        "## Evaluation",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {key} | {value:.4f} |" for key, value in facts["metrics"].items()),
        "",
        "## Use",
        "",
        "```",
        facts["chat_command"],
        "```",
        "",
        "The base model's and the data's licences apply; check both before you share this model.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
