"""Digest of a tokenizer: the same after any call, another for another vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny import word_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from plugin.data.tokenizer import train_tokenizer
from plugin.data.tokenizer_digest import tokenizer_digest

TEXTS = ["the cat sat on the mat", "the dog sat on the cat"] * 5


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300)


def test_call_with_padding_and_truncation_keeps_the_digest(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    before = tokenizer_digest(tokenizer)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=4)
    assert '"max_length":4' in tokenizer.backend_tokenizer.to_str()
    assert tokenizer_digest(tokenizer) == before
    assert len(before) == 32


def test_saved_tokenizer_keeps_its_digest(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_digest(tokenizer)


def test_other_vocabulary_or_special_token_has_another_digest(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    own = tokenizer_digest(tokenizer)
    assert tokenizer_digest(train_tokenizer(TEXTS, 265)) != own
    tokenizer.pad_token = "[MASK]"
    assert tokenizer_digest(tokenizer) != own


def test_added_token_has_another_digest(tokenizer: PreTrainedTokenizerBase) -> None:
    own = tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["<|turn|>"])
    assert tokenizer_digest(tokenizer) != own


def test_tokenizer_without_a_backend_is_digested_by_its_words() -> None:
    class Slow:
        """The parts of a slow tokenizer that the digest reads."""

        def __init__(self, *words: str):
            self._whole = word_tokenizer(words)

        def __getattr__(self, name: str) -> object:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._whole, name)

    first, again, other = Slow("a", "b"), Slow("a", "b"), Slow("a", "c")
    assert tokenizer_digest(first) == tokenizer_digest(again) != tokenizer_digest(other)
