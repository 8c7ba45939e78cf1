"""Longer context: another base of rotary positions, and room for longer texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CLS, tiny_model, word_tokenizer
from transformers import PreTrainedModel

from plugin.assembly.model import make_model
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.models.load import load_model
from plugin.models.publish import write_model
from plugin.run.facts import ModelFacts

ROTARY = ("modernbert", "llada", "Dream")
METHODS = {"modernbert": "bert", "bert": "bert", "roberta": "bert", "llada": "llada"}
WORDS = [f"w{number}" for number in range(35)]
IDS = torch.tensor([[CLS, *range(5, 36)]])  # 32 tokens: global attention sees far positions


def save(family: str, folder: Path) -> Path:
    model = tiny_model(family)
    if family == "modernbert":  # its local layers would hide the global ones' positions
        model = tiny_model(family, num_hidden_layers=4, global_attn_every_n_layers=3)
    write_model(folder, model, word_tokenizer(WORDS), ModelFacts())
    return folder


def made(folder: Path, family: str, **values: Any) -> PreTrainedModel:
    method = METHODS.get(family, "dream")
    params = Params(model_name=str(folder), training_method=method, **values)
    model = make_model(params, word_tokenizer(WORDS), torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ROTARY)
def test_theta_changes_the_model_and_is_published(family: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "base")
    plain, kept = load_model(str(folder)), made(folder, family, max_length=100)
    assert torch.equal(logits(plain), logits(kept)), "0 keeps the model's base"
    assert kept.config.max_position_embeddings == 64
    extended = made(folder, family, max_length=100, rope_theta=77_000.0)
    assert (logits(extended) - logits(plain)).abs().max() > 1e-3
    write_model(tmp_path / "fused", extended, word_tokenizer(WORDS), ModelFacts())
    again = load_model(str(tmp_path / "fused"))
    assert torch.equal(logits(again), logits(extended))
    assert again.config.max_position_embeddings == 100
    saved = json.loads((tmp_path / "fused" / "config.json").read_text())
    theta = saved.get("rope_theta") or saved["rope_parameters"]["full_attention"]["rope_theta"]
    assert theta == 77_000.0


def test_theta_of_modernbert_is_that_of_its_global_layers(tmp_path: Path) -> None:
    """Frequency i of a head of width 8 is theta^(-2 i / 8)."""
    model: Any = made(save("modernbert", tmp_path), "modernbert", rope_theta=1e4 + 0.5)
    rotary = model.model.rotary_emb
    exponents = torch.arange(4) / 4
    assert torch.allclose(rotary.full_attention_inv_freq, (1e4 + 0.5) ** -exponents)
    assert torch.allclose(rotary.sliding_attention_inv_freq, 1e4**-exponents)


def test_start_from_a_checkpoint_makes_room_for_longer_texts(tmp_path: Path) -> None:
    folder = save("modernbert", tmp_path)
    params = Params(start_from=str(folder), max_length=99)
    model: Any = make_model(params, word_tokenizer(WORDS), torch.float32)
    assert model.config.max_position_embeddings == 99
    shorter = Params(start_from=str(folder), max_length=9)
    model = make_model(shorter, word_tokenizer(WORDS), torch.float32)
    assert model.config.max_position_embeddings == 64


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_learned_positions_cannot_be_extended(family: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path)
    with pytest.raises(JobError) as refused:
        made(folder, family, rope_theta=1e5)
    (problem,) = refused.value.problems
    assert (problem.field, problem.got) == ("rope_theta", family)
    assert "modernbert, llada, Dream" in problem.expected
    params = Params(start_from=str(folder), max_length=65)
    with pytest.raises(JobError) as refused:
        make_model(params, word_tokenizer(WORDS), torch.float32)
    assert refused.value.problems[0].field == "max_length"
