"""Documents of a split: truncation, dropped rows, and the report."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers.tiny import CLS, SEP, word_tokenizer
from transformers import PreTrainedTokenizerFast

from plugin.base.errors import JobError
from plugin.data.chat import ChatFormat
from plugin.data.formats import Dropped, Example, RowResult
from plugin.data.prepare import Encoding, check_trainable, encode_split
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn

Rows = list[RowResult]
A, B, C, D = range(5, 9)


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(
        word_tokenizer(["a", "b", "c", "d", *(f"q{number}" for number in range(100))])
    )


def row(number: int, prompt: str, answer: str) -> Example:
    return Example(f"t.jsonl:{number}", (Turn("user", prompt), Turn("assistant", answer)))


def text(number: int, words: str) -> Example:
    return Example(f"t.txt:{number}", (Turn("text", words),))


def test_documents_and_report_worked_by_hand(chat: ChatFormat) -> None:
    rows: Rows = [
        row(1, "a", "b"),  # [CLS] a [SEP] b [SEP]: 5 tokens, 2 learned
        row(2, "a b", "c d a b"),  # 9 tokens, cut to 6: [CLS] a b [SEP] c d
        row(3, "a b c d a", "b"),  # the prompt takes 7
        Dropped("t.jsonl:4", "empty response"),
        row(5, "a b", "c"),  # 6 tokens: just fits
    ]
    documents, report = encode_split(rows, chat, Encoding(max_length=6))
    assert [documents[index].ids.tolist() for index in range(3)] == [
        [CLS, A, SEP, B, SEP],
        [CLS, A, B, SEP, C, D],
        [CLS, A, B, SEP, C, SEP],
    ]
    assert documents.prompts.tolist() == [3, 4, 4]
    assert [np.flatnonzero(documents[index].supervised).tolist() for index in range(3)] == [
        [3, 4],
        [4, 5],
        [4, 5],
    ]
    assert documents.rows == ("t.jsonl:1", "t.jsonl:2", "t.jsonl:5")
    assert (report.rows, report.documents, report.tokens, report.supervised) == (5, 3, 17, 6)
    assert (report.truncated, report.truncated_rows) == (1, ["t.jsonl:2"])
    assert report.dropped == {
        "empty response": 1,
        "prompt leaves no room for an answer within max_length": 1,
    }
    assert report.dropped_rows["prompt leaves no room for an answer within max_length"] == [
        "t.jsonl:3"
    ]
    assert (report.lengths, report.shortest_prompt) == ([5, 9, 9, 6], 3)
    shown = report.as_json()
    assert (shown["truncated_percent"], shown["dropped_percent"]) == (20.0, 40.0)
    length = shown["length"]
    assert isinstance(length, dict)
    assert (length["longest"], length["p50"], sum(length["counts"])) == (
        9,
        8,
        4,
    )  # the median of 5 6 9 9 is 7.5


def test_filter_drops_documents_beyond_max_length(chat: ChatFormat) -> None:
    rows: Rows = [row(1, "a", "b"), row(2, "a b", "c d a b")]
    documents, report = encode_split(rows, chat, Encoding(max_length=6, truncation="filter"))
    assert documents.rows == ("t.jsonl:1",)
    assert (report.truncated, report.dropped) == (0, {"longer than max_length": 1})


def test_turns_and_answers_only_choose_learned_tokens(chat: ChatFormat) -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    for how, learned in (
        (Encoding(max_length=20, turns="last"), [7, 8]),
        (Encoding(max_length=20, turns="all"), [3, 4, 7, 8]),
        (Encoding(max_length=20, answers_only=False), list(range(1, 9))),
    ):
        documents, _ = encode_split([Example("r:1", turns)], chat, how)
        assert np.flatnonzero(documents[0].supervised).tolist() == learned
        assert documents[0].prompt == 7


DIALOGUE = tuple(
    Turn(role, word) for word, role in zip("abcdab", ("user", "assistant") * 3, strict=True)
)


def test_random_prefix_ends_with_each_answer_equally_often(chat: ChatFormat) -> None:
    """LLaDA's rule: a dialogue gives a uniformly drawn prefix, whose last answer is learned."""
    rows: Rows = [Example(f"r:{number}", DIALOGUE) for number in range(3000)]
    documents, report = encode_split(
        rows, chat, Encoding(max_length=20, turns="random_prefix", seed=1)
    )
    assert (report.documents, report.truncated) == (3000, 0)
    whole = [CLS, A, SEP, B, SEP, C, SEP, D, SEP, A, SEP, B, SEP]
    ends = Counter(int(length) for length in documents.lengths)
    assert set(ends) == {5, 9, 13}
    assert all(
        count == pytest.approx(1000, abs=4 * (3000 * 2 / 9) ** 0.5) for count in ends.values()
    )
    for index in range(50):
        one = documents[index]
        assert one.ids.tolist() == whole[: one.ids.size]
        assert np.flatnonzero(one.supervised).tolist() == [one.ids.size - 2, one.ids.size - 1]
        assert one.prompt == one.ids.size - 2

    def sizes(seed: int, rows: Rows) -> dict[str, int]:
        found, _ = encode_split(
            rows, chat, Encoding(max_length=20, turns="random_prefix", seed=seed)
        )
        return dict(zip(found.rows, found.lengths.tolist(), strict=True))

    few = rows[:40]
    assert sizes(1, few) == sizes(1, few[::-1]), "a function of seed and row"
    assert sizes(1, few) != sizes(2, few)


def test_random_prefix_of_one_answer_is_the_full_dialogue(chat: ChatFormat) -> None:
    rows: Rows = [row(number, "a", "b") for number in range(20)]
    documents, _ = encode_split(rows, chat, Encoding(max_length=20, turns="random_prefix"))
    assert documents.lengths.tolist() == [5] * 20


def test_text_without_start_token_keeps_its_first_word_visible() -> None:
    """No family predicts a first token; Dream would predict it from the previous document."""
    backend = train_tokenizer(["a b c d"], 300).backend_tokenizer
    chat = ChatFormat(
        PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", eos_token="[SEP]")
    )
    assert chat.start_id is None
    documents, _ = encode_split(
        [text(1, "a b c d a b c")], chat, Encoding(max_length=4, stage="pretrain")
    )
    parts = [documents[index] for index in range(len(documents))]
    assert chat.text(np.concatenate([one.ids for one in parts]).tolist()) == "a b c d a b c", (
        "nothing is lost"
    )
    assert all(one.supervised.tolist() == [False] + [True] * (one.ids.size - 1) for one in parts)


def test_pretraining_splits_texts_and_loses_nothing(chat: ChatFormat) -> None:
    rows: Rows = [text(1, "a b c d a b c"), text(2, "d")]
    documents, report = encode_split(rows, chat, Encoding(max_length=4, stage="pretrain"))
    parts = [documents[index] for index in range(len(documents))]
    assert [one.ids.tolist() for one in parts] == [
        [CLS, A, B, C],
        [CLS, D, A, B],
        [CLS, C, SEP],
        [CLS, D, SEP],
    ]
    assert all(one.supervised.tolist() == [False] + [True] * (one.ids.size - 1) for one in parts)
    assert documents.rows == ("t.txt:1", "t.txt:1", "t.txt:1", "t.txt:2")
    assert (report.rows, report.documents, report.truncated) == (2, 4, 0)
    without, _ = encode_split(
        rows[1:], chat, Encoding(max_length=4, stage="pretrain", insert_eos=False)
    )
    assert without[0].ids.tolist() == [CLS, D]


def test_pretraining_without_room_after_start_token_fails(chat: ChatFormat) -> None:
    with pytest.raises(JobError) as caught:
        encode_split([text(1, "a b")], chat, Encoding(max_length=1, stage="pretrain"))
    assert caught.value.problems[0].field == "max_length"


def test_thousands_of_rows_keep_their_order(chat: ChatFormat) -> None:
    rows: Rows = [
        row(number, f"q{number % 100}", "a") for number in range(2500)
    ]  # more than two chunks
    documents, report = encode_split(rows, chat, Encoding(max_length=8))
    assert documents.rows == tuple(f"t.jsonl:{number}" for number in range(2500))
    assert [int(documents[number].ids[1]) for number in (0, 1023, 1024, 2499)] == [
        9 + number % 100 for number in (0, 1023, 1024, 2499)
    ]
    assert report.documents == 2500


@pytest.mark.parametrize(
    ("rows", "how", "field", "says"),
    [
        ([], Encoding(max_length=9), "dataset_name", "none"),
        (
            [Dropped("t:1", "empty response")],
            Encoding(max_length=9),
            "dataset_name",
            "1 x empty response",
        ),
        (
            [row(1, "a b c", "d"), row(2, "a b", "c")],
            Encoding(max_length=4),
            "max_length",
            "shortest prompt's 4 tokens",
        ),
        (
            [row(1, "a b", "c")],
            Encoding(max_length=5, truncation="filter"),
            "max_length",
            "1 x longer than max_length",
        ),
    ],
)
def test_nothing_to_learn_fails_and_names_the_field(
    chat: ChatFormat, rows: Rows, how: Encoding, field: str, says: str
) -> None:
    _, report = encode_split(rows, chat, how)
    with pytest.raises(JobError) as caught:
        check_trainable(report, "d.jsonl", how.max_length)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (3, field)
    assert says in str(problem)


def test_single_learned_token_is_enough(chat: ChatFormat) -> None:
    _, report = encode_split([row(1, "a", "b")], chat, Encoding(max_length=4))
    assert report.supervised == 1
    check_trainable(report, "d.jsonl", 4)


def test_reasons_of_a_report_are_bounded_and_rows_counted(chat: ChatFormat) -> None:
    """A template that quotes each row in its refusal filled log and report with a line a row."""
    rows: Rows = [
        Dropped(f"t.jsonl:{number}", f"chat template refuses user: {number}")
        for number in range(1000)
    ]
    _, report = encode_split(rows, chat, Encoding(max_length=6))
    assert len(report.dropped) == len(report.dropped_rows) == 41
    assert report.dropped["one more reason"] == 960
    assert sum(report.dropped.values()) == 1000
