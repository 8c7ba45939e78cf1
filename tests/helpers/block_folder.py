"""A folder with a tiny model that is denoised block by block, as a run or another tool saves it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers.support import pairs

from plugin.config.sampler import SamplerSettings
from plugin.data.tokenizer import train_tokenizer
from plugin.models.configuration import new_config, set_attention
from plugin.models.load import build_model, fit_config
from plugin.models.publish import write_model
from plugin.run.facts import BlockFacts, ModelFacts

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def write_block_folder(
    folder: Path,
    family: str = "qwen3",
    *,
    block: BlockFacts | None = None,
    sampler: SamplerSettings | None = None,
) -> Path:
    """Write a seeded model; without `block` a causal one. Without `sampler` no facts are written."""
    tokenizer = train_tokenizer([text for row in pairs() for text in row.values()], 300)
    file = folder.with_suffix(".json")
    fields = {**SHAPE, "model_type": family, "vocab_size": len(tokenizer)}
    file.write_text(json.dumps(fields), encoding="utf-8")
    config = new_config(str(file))
    fit_config(config, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = build_model(config)
    set_attention(model.config, "block" if block else "causal", block)
    facts = ModelFacts()
    if sampler:
        facts = ModelFacts(
            method="block" if block else "causal", objective="mdlm", block=block, sampler=sampler
        )
    write_model(folder, model, tokenizer, facts)
    if not sampler:
        (folder / "diffusion.json").unlink()
    return folder
