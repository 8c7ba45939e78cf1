"""Tokenizers of models: loading, and the fit of tokenizer and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import VOCABULARY, tiny_config, tiny_model, word_tokenizer

from plugin.data.tokenizer import train_tokenizer
from plugin.models.tokenizer import check_pair, load_tokenizer
from tests.models.refusals import refusal


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_other_mask_token_than_models_is_refused(family: str) -> None:
    """A model trained on one mask and sampled with another would predict nothing useful."""
    config, words = tiny_config(family), word_tokenizer(["a"])
    check_pair(config, words, 16)
    config.mask_token_id = 9
    problem = refusal(lambda: check_pair(config, words, 16))
    assert (problem.field, problem.expected, problem.got) == (
        "tokenizer_name",
        "the model's mask token (id 9)",
        "id 4",
    )


def test_tokenizer_without_mask_token_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b"], 300)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    problem = refusal(lambda: load_tokenizer(str(tmp_path)))
    assert "mask token" in str(problem)


def test_model_folder_without_tokenizer_is_refused(bert: Path) -> None:
    assert refusal(lambda: load_tokenizer(str(bert))).field in (
        "tokenizer_name",
        "model_name",
    )


def test_saved_tokenizer_loads(tmp_path: Path) -> None:
    word_tokenizer(["how", "are", "you"]).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("how are you")["input_ids"] == [2, 5, 6, 7, 3]


def test_tokenizer_larger_than_model_is_refused() -> None:
    def words(count: int) -> Any:
        return word_tokenizer([f"w{number}" for number in range(count - 5)])

    check_pair(tiny_config("bert"), words(VOCABULARY), 16)
    problem = refusal(lambda: check_pair(tiny_config("bert"), words(VOCABULARY + 1), 16))
    assert problem.field == "tokenizer_name"
    assert {"40", "41"} <= set(str(problem).replace("'s", "").split())


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 62), ("modernbert", None)])
def test_max_length_beyond_learned_positions_is_refused(family: str, limit: int | None) -> None:
    model, tokenizer = (
        tiny_model(family, pad_token_id=1 if family == "roberta" else 0),
        word_tokenizer(["a"]),
    )
    if limit is None:
        check_pair(model.config, tokenizer, 10_000)
        return
    check_pair(model.config, tokenizer, limit)
    assert model(input_ids=torch.full((1, limit), 9)).logits.isfinite().all()
    problem = refusal(lambda: check_pair(model.config, tokenizer, limit + 1))
    assert problem.field == "max_length"
    assert str(limit) in problem.expected
