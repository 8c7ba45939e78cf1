"""A model folder that works by itself: weights, tokenizer, how it was trained and is sampled, and a card for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .lora import MaybeAdapted, has_adapter

DIFFUSION_FILE = "diffusion.json"  # method, noise, loss weighting, end-of-answer policy, sampler settings


def write_model(folder: Path, model: MaybeAdapted, tokenizer: PreTrainedTokenizerBase, diffusion: dict[str, Any]) -> None:
    """Write safetensors weights (an adapter's alone, if there is one), configuration, tokenizer and `diffusion.json`."""
    folder.mkdir(parents=True)
    if has_adapter(model):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()  # peft's is a form that nobody fills in
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / DIFFUSION_FILE).write_text(json.dumps(diffusion, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_diffusion(folder: Path) -> dict[str, Any]:
    """The contents of `diffusion.json`; empty for a model that another tool made."""
    file = folder / DIFFUSION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """README.md: what the model is, what it was trained on and how, what its evaluation said, how to talk to it."""
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'fill-mask' if facts['method'] == 'bert' else 'text-generation'}",
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
        *_evaluation(facts["metrics"]),
        "## Use",
        "",
        "```",
        "python main.py chat FOLDER",
        "```",
        "",
        "The base model's and the data's licences apply; check both before you share this model.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def write_adapter_card(folder: Path, diffusion: dict[str, Any]) -> None:
    """README.md of an adapter, which says what it belongs to."""
    base = diffusion["base"]
    bits = ", as 4-bit weights" if base["four_bit"] else ""
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {base['name']}",
        "tags: [masked-diffusion, text-diffusion, lora]",
        "---",
        "# LoRA adapter",
        "",
        f"Trained by masked diffusion (method `{diffusion['method']}`) on `{base['name']}`{bits}.",
        "It is no model by itself: it belongs to exactly these weights, whose digest `diffusion.json` holds.",
        "",
        "```",
        "python main.py chat FOLDER",
        "python main.py fuse --adapter FOLDER --model_name BASE --out MODEL",
        "```",
        "",
        "The base model's and the data's licences apply; check both before you share this adapter.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _evaluation(metrics: dict[str, float]) -> list[str]:
    rows = [f"| {key} | {f'{value:g}' if float(value).is_integer() else f'{value:.4f}'} |" for key, value in metrics.items()]
    return ["## Evaluation", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
