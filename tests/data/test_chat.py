"""The encoder's notation `[CLS] prompt [SEP] answer [SEP]`: ids, spans and supervision by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiny import CLS, MASK, SEP, word_tokenizer
from transformers import PreTrainedTokenizerFast

from plugin.base.errors import JobError
from plugin.data.chat import ChatFormat, Encoded, supervision
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn

WORDS = ["how", "are", "you", "?", "fine", "thanks", "[", "]", "mask", "sep", "play", "##ing"]
HOW, ARE, YOU, ASK, FINE, THANKS, OPEN, CLOSE, WORD_MASK, WORD_SEP, PLAY, ING = range(5, 17)


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(word_tokenizer(WORDS))


def user(text: str) -> Turn:
    return Turn("user", text)


def bot(text: str) -> Turn:
    return Turn("assistant", text)


def test_question_and_answer_worked_by_hand(chat: ChatFormat) -> None:
    (one,) = chat.encode([[user("How are you?"), bot("fine, playing"[:4])]])
    assert one.ids.tolist() == [CLS, HOW, ARE, YOU, ASK, SEP, FINE, SEP]
    assert one.answers == ((6, 8),)


def test_system_turn_and_two_answers_worked_by_hand(chat: ChatFormat) -> None:
    dialogue = [
        Turn("system", "play"),
        user("how"),
        bot("fine thanks"),
        user("you?"),
        bot("playing"),
    ]
    (one,) = chat.encode([dialogue])
    assert one.ids.tolist() == [
        CLS,
        PLAY,
        SEP,
        HOW,
        SEP,
        FINE,
        THANKS,
        SEP,
        YOU,
        ASK,
        SEP,
        PLAY,
        ING,
        SEP,
    ]
    assert one.answers == ((5, 8), (11, 14))


def test_plain_text_has_no_answers(chat: ChatFormat) -> None:
    (one,) = chat.encode([[Turn("text", "how are you")]])
    assert one.ids.tolist() == [CLS, HOW, ARE, YOU, SEP]
    assert one.answers == ()


def test_dialogues_encoded_together_equal_each_alone(chat: ChatFormat) -> None:
    dialogues = [
        [user("how"), bot("fine")],
        [Turn("text", "thanks")],
        [user("you?"), bot("")],
        [user("are"), bot("playing")],
    ]
    together = chat.encode(dialogues)
    for dialogue, one in zip(dialogues, together, strict=True):
        (single,) = chat.encode([dialogue])
        assert np.array_equal(one.ids, single.ids)
        assert one.answers == single.answers
    assert together[2].ids.tolist() == [CLS, YOU, ASK, SEP, SEP]
    assert together[2].answers == ((4, 5),)
    assert chat.encode([]) == []


def test_special_tokens_in_a_users_text_are_text(chat: ChatFormat) -> None:
    (one,) = chat.encode([[user("[MASK] you"), bot("[SEP]")]])
    assert one.ids.tolist() == [CLS, OPEN, WORD_MASK, CLOSE, YOU, SEP, OPEN, WORD_SEP, CLOSE, SEP]
    trained = ChatFormat(train_tokenizer(["how are you"], 300))
    ids = trained.prompt([user("[CLS][MASK][SEP][PAD][UNK]")]).tolist()
    assert [token for token in ids if token <= MASK] == [CLS, SEP]
    assert trained.text(ids) == "[CLS][MASK][SEP][PAD][UNK]"


def test_prompt_ends_where_the_answer_begins(chat: ChatFormat) -> None:
    turns = [user("how"), bot("fine"), user("you?")]
    (whole,) = chat.encode([[*turns, bot("thanks")]])
    prompt = chat.prompt(turns)
    assert (
        prompt.tolist()
        == whole.ids[: whole.answers[-1][0]].tolist()
        == [CLS, HOW, SEP, FINE, SEP, YOU, ASK, SEP]
    )


def test_answer_is_decoded_up_to_its_first_end_token(chat: ChatFormat) -> None:
    assert chat.decode([FINE, THANKS, SEP, SEP, HOW, SEP]) == "fine thanks"
    assert chat.decode([FINE, PLAY, ING]) == "fine playing"
    assert chat.decode([SEP, FINE]) == ""


def test_frame_shows_every_masked_token_as_a_hole(chat: ChatFormat) -> None:
    assert chat.frame([FINE, MASK, MASK, THANKS, SEP, MASK], "_") == "fine__thanks_"


def test_tokenizer_without_mask_or_end_token_is_refused() -> None:
    backend = train_tokenizer(["a"], 300).backend_tokenizer
    for kept in ({"mask_token": "[MASK]"}, {"sep_token": "[SEP]"}, {"eos_token": "[SEP]"}):
        with pytest.raises(JobError) as caught:
            ChatFormat(PreTrainedTokenizerFast(tokenizer_object=backend, **kept))
        assert (caught.value.code, caught.value.problems[0].field) == (4, "tokenizer_name")


def test_end_of_text_serves_as_separator_and_padding() -> None:
    backend = train_tokenizer(["a"], 300).backend_tokenizer
    chat = ChatFormat(
        PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", eos_token="[SEP]")
    )
    assert (chat.start_id, chat.end_ids, chat.fill_id, chat.pad_id) == (None, (SEP,), SEP, SEP)
    assert chat.encode([[user("a"), bot("a")]])[0].answers == ((2, 4),)


ANSWERS = Encoded(np.arange(10, dtype=np.int32), ((3, 5), (7, 10)))


@pytest.mark.parametrize(
    ("answers_only", "turns", "learned"),
    [
        (True, "last", [7, 8, 9]),
        (True, "all", [3, 4, 7, 8, 9]),
        (False, "last", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (False, "all", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_supervision_by_turns_and_answers_only(
    answers_only: bool, turns: str, learned: list[int]
) -> None:
    assert (
        np.flatnonzero(supervision(ANSWERS, answers_only=answers_only, turns=turns)).tolist()
        == learned
    )


def test_supervision_of_a_text_is_all_but_its_first_token() -> None:
    text = Encoded(np.arange(4, dtype=np.int32), ())
    assert supervision(text, answers_only=True, turns="last").tolist() == [False, True, True, True]
