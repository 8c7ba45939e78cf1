"""Chat templates are refused, or training and chat use their output alike."""

from __future__ import annotations

import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.promise import kept, limited, writable
from fuzz.templates import ADDED, dialogues, fields, sources
from hypothesis import event, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from plugin.data.chat import CHANGED, ChatFormat, Encoded, supervision
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn
from plugin.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.fuzz
MOMENT = datetime(2026, 1, 2)
QUESTION = (Turn("user", "Why?"), Turn("assistant", "Air."))


def make_tokenizer() -> PreTrainedTokenizerBase:
    made = train_tokenizer(["Why is the sky blue? Because of its air."], 280)
    made.add_special_tokens({"extra_special_tokens": list(ADDED)})
    made.bos_token, made.eos_token = "[CLS]", "[SEP]"
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Make a tokenizer of bytes; each input sets its template."""
    return make_tokenizer()


@given(
    source=sources(),
    chats=st.lists(dialogues(), min_size=1, max_size=3),
    find=st.sampled_from(("all", "last", "marked")),
)
def test_chat_template_is_refused_or_asks_as_it_trains(
    tokenizer: PreTrainedTokenizerBase, source: str, chats: list[tuple[Turn, ...]], find: Any
) -> None:
    tokenizer.chat_template = source
    chat = kept(lambda: ChatFormat(tokenizer, MOMENT))
    if chat is None:
        return
    with limited():
        encoded = chat.encode(chats, find=find)
        again = chat.encode(chats, find=find)
    assert len(encoded) == len(chats)
    for turns, one, other in zip(chats, encoded, again, strict=True):
        if isinstance(one, str):
            event("dropped")
            assert one == other
            assert one.splitlines() == [one]
            writable(one)
            continue
        event("trained on")
        assert isinstance(other, Encoded)
        assert np.array_equal(one.ids, other.ids)
        check_encoded(chat, turns, one)


def check_encoded(chat: ChatFormat, turns: tuple[Turn, ...], one: Encoded) -> None:
    """Assert properties of a dialogue that hold for any template."""
    writable(one.remarks)
    assert chat.mask_id not in one.ids or "[MASK]" in str(chat.tokenizer.chat_template)
    spans = sorted((*one.answers, *one.withheld))
    ends = [0, *(place for span in spans for place in span), one.ids.size]
    assert ends == sorted(ends)
    for start, end in spans:
        assert start < end
        assert one.ids[end - 1] == chat.end_id
    assert one.answers
    learned = supervision(one, answers_only=True, turns="last")
    assert learned.sum() == one.answers[-1][1] - one.answers[-1][0]
    start, end = one.answers[-1]
    before = list(turns[:-1])
    asked = kept(lambda: chat.prompt(before))
    if asked is not None:
        assert np.array_equal(asked, one.ids[:start]), "chat asks differently from training"
    if CHANGED not in one.remarks:
        assert turns[-1].text.strip() in chat.text(one.ids[start:end].tolist())


@given(field=fields(), apart=st.booleans(), content=st.none() | st.binary(max_size=9))
def test_template_field_of_any_kind_is_refused_or_read(
    saved: Path, field: Any, apart: bool, content: bytes | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in saved.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = folder / "tokenizer_config.json"
        config.write_text(
            json.dumps({**json.loads(config.read_text(encoding="utf-8")), "chat_template": field}),
            encoding="utf-8",
        )
        if apart:
            given = str(field).encode("utf-8", "replace") if content is None else content
            (folder / "chat_template.jinja").write_bytes(given)
        tokenizer = kept(lambda: load_tokenizer(name))
        chat = kept(lambda: ChatFormat(tokenizer, MOMENT)) if tokenizer else None
        if chat is not None:
            event("read")
            with limited():
                chat.encode([QUESTION])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder
