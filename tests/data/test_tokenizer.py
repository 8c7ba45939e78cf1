"""Trained tokenizer: every text survives, special tokens come first, sizes are kept."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from helpers.tiny import CLS, SEP, SPECIAL
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from plugin.data.tokenizer import train_tokenizer

TEXTS = [
    "the cat sat on the mat",
    "the dog sat on the cat",
    "  two  spaces and\na line",
    "naïve façade",
] * 5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300)


def round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    ids = tokenizer([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
    assert min(ids, default=5) >= 5, "no special token comes out of a text"
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize(
    "text",
    [
        "the cat",
        " \t\n\r leading",
        "世界 🤖 👩‍👩‍👧 é ﬁ \u200d\ufeff\x00\x7f",
        "[MASK] [SEP][CLS]",
        "don 't , stop .",
        "𝕏" * 50,
    ],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert round_trip(tokenizer, text) == text


def test_random_unicode_survives(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(3)
    points = [
        point for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000
    ]  # no halves of surrogate pairs
    for _ in range(200):
        text = "".join(map(chr, rng.sample(points, 20)))
        assert round_trip(tokenizer, text) == text


def test_special_tokens_come_first_and_enclose_a_text(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(SPECIAL)
    ids = tokenizer("the cat")["input_ids"]
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert CLS not in ids[1:]


def test_vocabulary_keeps_its_size_and_merges_frequent_pairs(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert 261 < len(tokenizer) <= 300
    assert len(tokenizer.tokenize("the cat sat")) < len("the cat sat") / 2
    assert len(train_tokenizer(["a"], 300)) == 261, (
        "five special tokens and 256 bytes when there is nothing to merge"
    )


def test_saved_tokenizer_loads_as_equal(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "[MASK] 世界"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert round_trip(loaded, text) == text
    assert loaded.mask_token_id == tokenizer.mask_token_id
