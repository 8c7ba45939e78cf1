"""Records of steps: texts of tokens, with hindsight, that join to the answer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plugin.data.chat import ChatFormat
from plugin.models.tokenizer import load_tokenizer
from plugin.player.records import DenoisingRecord
from plugin.sampling.request import DenoisingStep, merged
from plugin.sampling.trace import records, token_texts

TEXT = "sun 🌞 mоon, naïve “star” … 東京 is n't it"


@pytest.fixture(scope="module")
def pieces(tiny_bert: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(str(tiny_bert)))


@pytest.fixture(scope="module")
def single_bytes() -> ChatFormat:
    """Return a notation whose tokens are single bytes: most characters take several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate([*letters, "<mask>", "<eos>"])}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return ChatFormat(
        PreTrainedTokenizerFast(
            tokenizer_object=core, mask_token="<mask>", eos_token="<eos>", pad_token="<eos>"
        )
    )


def test_tokens_of_several_bytes_join_to_the_text(single_bytes: ChatFormat) -> None:
    ids = single_bytes.plain_ids([TEXT * 5])[0]
    texts = token_texts(ids, single_bytes)
    assert "".join(texts) == TEXT * 5
    assert texts[4:8] == ["", "", "", "🌞"]
    assert all(len(text) <= 1 for text in texts)


def test_random_ids_join_to_their_text(pieces: ChatFormat, single_bytes: ChatFormat) -> None:
    for chat in (pieces, single_bytes):
        for seed in range(20):
            ids = random.Random(seed).choices(chat.ordinary_ids.tolist(), k=150)
            assert "".join(token_texts(ids, chat)) == chat.text(ids)


def test_long_answers_take_linear_work(pieces: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pieces.plain_ids(["sun moon star sky " * 500])[0]
    decoded: list[int] = []
    text = pieces.text
    monkeypatch.setattr(pieces, "text", lambda ids: decoded.append(len(ids)) or text(ids))
    token_texts(ids, pieces)
    assert len(ids) > 1000
    assert sum(decoded) < 40 * len(ids)


def test_tokens_read_as_in_the_answer_and_replaced_ones_as_then(single_bytes: ChatFormat) -> None:
    chat = single_bytes
    mask, sun, end = chat.mask_id, chat.plain_ids(["ä"])[0], chat.end_id
    x, y = chat.plain_ids(["xy"])[0]
    taken = [
        (DenoisingStep(0, 0, (1, 2), (sun[1], x)), np.array([mask, sun[1], x, mask], np.int32)),
        (DenoisingStep(1, 0, (2,), (y,)), np.array([mask, sun[1], y, mask], np.int32)),
        (DenoisingStep(2, 0, (0, 3), (sun[0], end)), np.array([*sun, y, end], np.int32)),
    ]
    found = list(records(taken, chat))
    assert [record["tokens"] for record in found] == [["ä", "x"], ["y"], ["", ""]]
    assert all(DenoisingRecord.read(record).tokens == record["tokens"] for record in found)
    (one,) = records(merged(taken, 1), chat)
    assert (one["positions"], one["ids"][2]) == ([0, 1, 2, 3], y)


def test_the_texts_between_holes_are_given_once(single_bytes: ChatFormat) -> None:
    a, b, c = single_bytes.plain_ids(["abc"])[0]
    mask, end = single_bytes.mask_id, single_bytes.end_id
    taken = [
        (DenoisingStep(0, 0, (1,), (b,)), np.array([a, b, mask, c, end], np.int32)),
        (DenoisingStep(1, 0, (2,), (b,)), np.array([a, b, b, c, end], np.int32)),
    ]
    first, second = records(taken, single_bytes)
    assert first["given"] == [(0, "a"), (3, "c"), (4, "")]
    assert "given" not in second
    assert list(records([], single_bytes)) == []
