"""Bulk tokenising: the ids of `tokenizers`, whatever the engine and the text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerBase

from plugin.data import bulk_tokenizer
from plugin.data.bulk_tokenizer import BulkTokenizer
from plugin.data.chat import ChatFormat, Flat
from plugin.data.formats import Example
from plugin.data.prepare import Encoding, SplitReport, encode_rows
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn

TEXTS = [
    "The quick brown fox, 42 times.",
    "",
    " leading and trailing  ",
    "[MASK] is spelled here, and [SEP] there [CLS]",
    "naïve 東京 🙂\n\tdef f(x):\r\n    return x",
    "\U0010f000 a private character",
    "don't stop  at   spaces",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS * 20, 400)


def as_lists(flat: Flat) -> list[list[int]]:
    ids, offsets = flat
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


def test_fast_ids_equal_those_of_tokenizers(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatFormat(tokenizer)
    bulk = BulkTokenizer(chat, checks=0)  # the check would hide a difference
    assert bulk.engine == "fastokens"
    assert as_lists(bulk.encode(TEXTS)) == chat.plain_ids(TEXTS)
    assert bulk.engine == "fastokens"
    assert as_lists(bulk.encode([])) == []


def test_truncation_of_an_earlier_call_changes_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer("a b c d e", truncation=True, max_length=3, padding="max_length")
    bulk = BulkTokenizer(ChatFormat(tokenizer))
    (ids,) = as_lists(bulk.encode(["one two three four five six seven eight"]))
    assert tokenizer.decode(ids) == "one two three four five six seven eight"


def test_tokenizer_that_fastokens_refuses_is_served_and_logged(tmp_path: object) -> None:
    words = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    said: list[str] = []
    bulk = BulkTokenizer(ChatFormat(BertTokenizer(vocab=words)), said.append)
    assert bulk.engine == "tokenizers"
    assert "fastokens says" in said[0]
    assert as_lists(bulk.encode(["a a b", "[MASK]"]))[0] == [5, 5, 1]


def test_other_ids_switch_the_engine(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Tokenizer(models.WordLevel({"The": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    class Wrong:
        def encode_batch_flat(
            self, texts: list[str], split_special_tokens: bool
        ) -> tuple[bytes, bytes]:
            found = [other.encode(text).ids for text in texts]
            ends = np.cumsum([0, *map(len, found)]).astype(np.uint64)
            return np.array(
                [token for ids in found for token in ids], np.uint32
            ).tobytes(), ends.tobytes()

    monkeypatch.setattr(bulk_tokenizer, "_fast_tokenizer", lambda tokenizer: (Wrong(), ""))
    said: list[str] = []
    chat = ChatFormat(tokenizer)
    bulk = BulkTokenizer(chat, said.append)
    assert as_lists(bulk.encode(TEXTS)) == chat.plain_ids(TEXTS)
    assert bulk.engine == "tokenizers"
    assert said == ["tokenizer: fastokens gave other ids; texts are encoded by tokenizers"]


def test_rows_of_texts_are_encoded_as_in_a_dialogue(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatFormat(tokenizer)
    rendered = "<|im_start|>user\nhello<|im_end|>"
    rows = [Example(f"r:{n}", (Turn("text", text),)) for n, text in enumerate([*TEXTS, rendered])]
    how = Encoding(max_length=7, stage="pretrain")
    reports = SplitReport(), SplitReport()
    slow = encode_rows(rows, chat, how, reports[0])
    fast = encode_rows(rows, chat, how, reports[1], BulkTokenizer(chat))
    assert [[one.ids.tolist() for one in of_row] for of_row in fast] == [
        [one.ids.tolist() for one in of_row] for of_row in slow
    ]
    assert reports[0] == reports[1]
    assert len(reports[0].remarks) >= 4
