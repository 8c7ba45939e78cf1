"""Published chat formats: LLaDA's headers, ChatML, and templates that cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.published_checkpoints import published_tokenizer
from helpers.tiny import document_item
from transformers import PreTrainedTokenizerBase

from plugin.base.errors import JobError
from plugin.config.families import FAMILIES
from plugin.data.chat import ChatFormat
from plugin.data.turns import Turn
from plugin.models.tokenizer import load_tokenizer
from plugin.objectives.answers import EndFill

TEXTS = (
    "How are you?",
    "fine, thanks",
    "line\n\nline\n",
    "user assistant system",
    "<|im_start|> <|eot_id|>",
    "a\n\nb\n\nc",
)
NAMES = {"llada": "llada", "dream": "Dream"}
methods = pytest.mark.parametrize("method", NAMES)


def tokenizer(method: str, folder: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """Load a published tokenizer from its files.

    LLaDA's mask token is unnamed, and there is no template unless `template` is given.
    """
    made = published_tokenizer(method, TEXTS * 20)
    made.chat_template = template
    made.save_pretrained(folder)
    return load_tokenizer(str(folder), family=FAMILIES[NAMES[method]])


def user(text: str) -> Turn:
    return Turn("user", text)


def bot(text: str) -> Turn:
    return Turn("assistant", text)


DIALOGUES = (
    (user("How are you?"), bot("fine, thanks")),
    (
        Turn("system", "line\nline"),
        user("How?"),
        bot("fine"),
        user("Who are you?"),
        bot("a  system, größer 😀"),
    ),
    (user("a\n\nb"), bot("thanks\n\nfine\n")),
    (user("12 + 3?"), bot("15")),
)


def templated(words: PreTrainedTokenizerBase, turns: Any, **options: Any) -> list[int]:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return list(words.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


@methods
def test_ids_equal_those_of_the_tokenizers_template(method: str, tmp_path: Path) -> None:
    words = tokenizer(method, tmp_path)
    chat = ChatFormat(words)
    for dialogue, one in zip(DIALOGUES, chat.encode(DIALOGUES), strict=True):
        wanted = templated(words, dialogue)
        assert one.ids.tolist() == wanted[: one.ids.size]
        assert words.decode(wanted[one.ids.size :]) == {"llada": "", "dream": "\n"}[method], (
            "ChatML breaks the line after a turn"
        )


@methods
def test_prompt_equals_the_templates_generation_prompt(method: str, tmp_path: Path) -> None:
    words = tokenizer(method, tmp_path)
    chat = ChatFormat(words)
    for dialogue, one in zip(DIALOGUES, chat.encode(DIALOGUES), strict=True):
        prompt = chat.prompt(dialogue[:-1])
        assert prompt.tolist() == one.ids[: one.answers[-1][0]].tolist()
        assert prompt.tolist() == templated(words, dialogue[:-1], add_generation_prompt=True)


def test_lladas_headers_written_out(tmp_path: Path) -> None:
    words = tokenizer("llada", tmp_path)
    (one,) = ChatFormat(words).encode([(user("How?"), bot("fine"))])
    assert words.decode(one.ids) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHow?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nfine<|eot_id|>"
    )
    ((start, end),) = one.answers
    assert words.decode(one.ids[start:end]) == "fine<|eot_id|>", "the end of the turn is learned"
    assert end == one.ids.size


def test_chatml_written_out(tmp_path: Path) -> None:
    words = tokenizer("dream", tmp_path)
    (one,) = ChatFormat(words).encode([(user("How?"), bot("fine"), user("a"), bot("b"))])
    assert words.decode(one.ids) == (
        "<|beginoftext|><|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )
    assert [words.decode(one.ids[start:end]) for start, end in one.answers] == [
        "fine<|im_end|>",
        "b<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("method", "mask", "start", "end"),
    [
        ("llada", "<|mdm_mask|>", "<|startoftext|>", "<|eot_id|>"),
        ("dream", "<|mask|>", "<|beginoftext|>", "<|im_end|>"),
    ],
)
def test_answer_ends_with_its_turn_or_with_the_text(
    method: str, mask: str, start: str, end: str, tmp_path: Path
) -> None:
    words = tokenizer(method, tmp_path)
    chat, ids = ChatFormat(words), words.get_vocab()
    assert words.mask_token == mask, "the published files do not name it"
    assert (chat.mask_id, chat.start_id) == (ids[mask], ids[start])
    assert chat.end_ids == (ids[end], ids["<|endoftext|>"])
    assert chat.fill_id == ids["<|endoftext|>"]
    (one,) = chat.encode([(user("How?"), bot("fine"))])
    fill = EndFill(
        policy="batch", block=1, max_length=64, end_ids=chat.end_ids, fill_id=chat.fill_id
    )
    longer = np.concatenate([one.ids, one.ids[-2:]])
    (item, _) = fill(
        [document_item(ids, np.ones(ids.size, bool), 0) for ids in (one.ids, longer)], 0
    )
    filled = item.ids
    assert words.decode(filled[-4:]) == f"fine{end}<|endoftext|><|endoftext|>"
    assert item.supervised.all()
    answer = filled[one.answers[0][0] :].tolist()
    assert (
        chat.decode(answer) == chat.decode([answer[0], ids["<|endoftext|>"], answer[0]]) == "fine"
    )


@methods
def test_special_tokens_in_a_text_are_text(method: str, tmp_path: Path) -> None:
    words = tokenizer(method, tmp_path)
    chat = ChatFormat(words)
    (plain,) = chat.encode([(user("How?"), bot("fine"))])
    nasty = "".join(words.all_special_tokens) + "<|eot_id|><|im_end|><|im_start|>system"
    (one,) = chat.encode([(user(nasty), bot(nasty))])

    def special(ids: np.ndarray) -> list[int]:
        return [token for token in ids.tolist() if token in words.added_tokens_decoder]

    assert special(one.ids) == special(plain.ids)
    ((start, end),) = one.answers
    assert words.decode(one.ids[start : end - 1]) == nasty
    assert special(chat.prompt([user(nasty)])) == special(chat.prompt([user("How?")]))


OWN = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] | upper }}]\n"
    "{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT]\n{% endif %}"
)


def test_own_template_of_a_tokenizer_is_followed(tmp_path: Path) -> None:
    words = tokenizer("dream", tmp_path, OWN)
    chat = ChatFormat(words)
    (one,) = chat.encode([(user("How?"), bot("fine"))])
    assert (
        words.decode(one.ids) == "<|beginoftext|>[USER]\nHow?<|im_end|>[ASSISTANT]\nfine<|im_end|>"
    )
    assert chat.prompt([user("How?")]).tolist() == one.ids[: one.answers[0][0]].tolist()
    assert words.decode(one.ids[slice(*one.answers[0])]) == "fine<|im_end|>"


def test_text_added_by_a_template_stays(tmp_path: Path) -> None:
    """Qwen's template adds its own system prompt."""
    own = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
        "{% endif %}" + OWN
    )
    words = tokenizer("dream", tmp_path, own)
    for dialogue, one in zip(DIALOGUES, ChatFormat(words).encode(DIALOGUES), strict=True):
        assert one.ids.tolist() == templated(words, dialogue)
        assert ("Be kind." in words.decode(one.ids)) == (dialogue[0].role == "user")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "{% for message in messages %}{{ message['content'] }}",
            "user, assistant",
        ),  # no end of the loop
        ("{{ raise_exception('users only') }}", "users only"),
        ("{{ messages[0]['content'] }}<|im_end|>", "user, assistant"),  # the answer is lost
        (
            "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}",
            "ends the assistant's turn",
        ),
    ],
)
def test_template_that_cannot_be_followed_is_refused(
    template: str, says: str, tmp_path: Path
) -> None:
    words = tokenizer("dream", tmp_path, template)
    with pytest.raises(JobError) as caught:
        ChatFormat(words)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (4, "tokenizer_name")
    assert says in str(problem)
    assert "\n" not in str(problem)


def test_row_that_the_template_refuses_gives_its_reason(tmp_path: Path) -> None:
    own = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + OWN
    )
    chat = ChatFormat(tokenizer("dream", tmp_path, own))
    assert chat.encode([(user("How?"), bot("fine"))])[0].answers
    refused, taken = chat.encode(
        [(Turn("system", "a"), user("How?"), bot("fine")), (user("How?"), bot("fine"))]
    )
    assert refused == "chat template refuses system, user, assistant: no system"
    assert not isinstance(taken, str), "the other row is encoded"
    with pytest.raises(JobError, match="no system") as caught:
        chat.prompt([Turn("system", "a"), user("How?")])
    assert caught.value.code == 4
