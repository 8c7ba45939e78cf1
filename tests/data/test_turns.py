"""Turns: shapes of chats that are read, rows that are dropped with a reason, and unread content."""

from __future__ import annotations

import json
import math

import pytest

from plugin.data.formats import Example, detect_format, read_example
from plugin.data.seen import RowError, Seen
from plugin.data.sources import Row
from plugin.data.turns import FIRST_NOT_LEARNED, Turn, first_round, random_prefix

ASKED, ANSWERED = Turn("user", "2+2?"), Turn("assistant", "4")
THINKING = [{"type": "thinking", "thinking": "add"}, {"type": "text", "text": "4"}]
PAIR = (ASKED, ANSWERED)
CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SYSTEM = Turn("system", "Be brief.")


def read(values: dict[str, object], seen: Seen | None = None) -> tuple[Turn, ...] | str:
    found_format, _ = detect_format(values, None, "text", "sft")
    found = read_example(Row("t.jsonl:1", values), found_format, seen)
    return found.turns if isinstance(found, Example) else found.reason


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ({"messages": json.dumps(CHAT)}, PAIR),
        ({"messages": {"role": ["user", "assistant"], "content": ["2+2?", "4"]}}, PAIR),
        ({"messages": json.dumps({"role": ["user", "assistant"], "content": ["2+2?", "4"]})}, PAIR),
        (
            {
                "conversations": {
                    "from": ["human", "gpt"],
                    "value": ["2+2?", "4"],
                    "weight": [None, None],
                }
            },
            PAIR,
        ),
        ({"conversation": CHAT}, PAIR),
        ({"dialog": CHAT}, PAIR),
        ({"conversation": [{"human": "2+2?", "assistant": "4"}]}, PAIR),
        ({"conversation": [{"input": "2+2?", "output": "4", "role": None}]}, PAIR),
        ({"system": "Be brief.", "messages": CHAT}, (SYSTEM, *PAIR)),
        ({"system_prompt": "Be brief.", "question": "2+2?", "response": "4"}, (SYSTEM, *PAIR)),
        ({"system": "Be brief.", "prompt": "2+2?", "completion": "4"}, (SYSTEM, *PAIR)),
        ({"system": None, "prompt": "2+2?", "response": "4", "history": []}, PAIR),
        ({"instruction": "2+2?", "context": "", "response": "4"}, PAIR),
        (
            {"instruction": "Add", "context": "2+2", "response": "4"},
            (Turn("user", "Add\n2+2"), ANSWERED),
        ),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, PAIR),
        ({"prompt": "2+2?", "chosen": CHAT, "rejected": CHAT}, PAIR),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:]}, PAIR),
        ({"prompt": json.dumps(CHAT[:1]), "completion": json.dumps(CHAT[1:])}, PAIR),
        (
            {"prompt": "[{not json}]", "completion": "[1]"},
            (Turn("user", "[{not json}]"), Turn("assistant", "[1]")),
        ),
        ({"user": "2+2?", "assistant": "4"}, PAIR),
        (
            {"instruction": "3?", "output": "9", "history": [["2+2?", "4"]]},
            (*PAIR, Turn("user", "3?"), Turn("assistant", "9")),
        ),
        (
            {"prompt": "3?", "response": "9", "history": json.dumps(CHAT)},
            (*PAIR, Turn("user", "3?"), Turn("assistant", "9")),
        ),
        (
            {
                "prompt": "3?",
                "response": "9",
                "history": [{"user": "2+2?", "assistant": "4"}],
                "system": "Be brief.",
            },
            (SYSTEM, *PAIR, Turn("user", "3?"), Turn("assistant", "9")),
        ),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": THINKING}]},
            (ASKED, Turn("assistant", "4", thought="add")),
        ),
    ],
)
def test_known_shape_is_read_as_its_chat(
    values: dict[str, object], turns: tuple[Turn, ...]
) -> None:
    assert read(values) == turns


@pytest.mark.parametrize(
    ("values", "reason", "says"),
    [
        (
            {"dialog": ["2+2?", "4"]},
            "message is not an object",
            "message is text, expected an object",
        ),
        ({"messages": "2+2? 4"}, "no list of messages", "text where messages are expected"),
        (
            {"messages": "[{'role': 'user'}]"},
            "no list of messages",
            "text where messages are expected",
        ),
        (
            {"messages": {"role": ["user"], "content": ["a", "b"]}},
            "no list of messages",
            "an object where messages are",
        ),
        (
            {"messages": [{"speaker": "me", "text": "hi"}]},
            "message without a role",
            "with the keys 'speaker', 'text'",
        ),
        (
            {"prompt": "a", "response": "b", "history": "x"},
            "history is not a list of pairs",
            "text in history",
        ),
        (
            {"prompt": "a", "response": "b", "history": [["x"]]},
            "history is not a list of pairs",
            "a list of 1",
        ),
        (
            {
                "messages": [
                    CHAT[0],
                    {"role": "assistant", "content": "a", "function_call": {"name": "f"}},
                ]
            },
            "message with tool calls",
            "",
        ),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "tool_use"}]}]},
            "message with tool calls",
            "",
        ),
        (
            {"messages": [CHAT[0], {**CHAT[1], "weight": 0}]},
            "every answer is marked as not to be learned",
            "",
        ),
        ({"prompt": "a", "response": -math.inf}, "number is infinite", ""),
        (
            {"prompt": "a", "response": {"x": 1}},
            "content is not text",
            "content is an object, expected text",
        ),
    ],
)
def test_unclear_row_is_dropped_and_explained(
    values: dict[str, object], reason: str, says: str
) -> None:
    seen = Seen()
    assert read(values, seen) == reason
    assert says in seen.why(reason)
    assert not says or any(line.endswith("(first at t.jsonl:1)") for line in seen.lines())


def test_unread_columns_and_keys_are_counted() -> None:
    seen = Seen()
    for number in range(3):
        message = {**CHAT[1], "name": "bot", "train_detail": [1] if number else None}
        values = {
            "messages": [CHAT[0], message],
            "tools": "[]",
            "id": number,
            "notes": "",
            "empty": None,
        }
        assert read(values, seen) == PAIR
    read({"messages": [{"role": "system", "content": "x"}, *CHAT], "system": "y"}, seen)
    assert seen.lines() == [
        "columns 'tools', 'id', 'system' are not read (3, 3 and 1 rows)",
        "message keys 'name', 'train_detail' are not read (3 and 2 messages)",
    ]


def test_many_names_are_shown_in_part() -> None:
    seen = Seen()
    read({"prompt": "a", "response": "b", **{f"c{number}": 1 for number in range(30)}}, seen)
    (line,) = seen.lines()
    assert line.startswith("columns 'c0', 'c1', ")
    assert "'c11', ... (30 in all) are not read" in line


def test_random_prefix_ends_with_an_answer_to_be_learned() -> None:
    turns = (
        ASKED,
        Turn("assistant", "a", learn=False),
        ASKED,
        Turn("assistant", "b"),
        ASKED,
        Turn("assistant", "c"),
    )
    assert {len(random_prefix(turns, share / 10)) for share in range(10)} == {4, 6}


MORE = (Turn("user", "3+3?"), Turn("assistant", "6"))
GREETING = Turn("assistant", "Hello!")


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (PAIR, PAIR),
        ((*PAIR, *MORE), PAIR),
        ((SYSTEM, *PAIR, *MORE), (SYSTEM, *PAIR)),
        ((GREETING, *PAIR, *MORE), PAIR),
        ((SYSTEM, GREETING, *PAIR), (SYSTEM, *PAIR)),
        ((ASKED, Turn("user", "Well?"), ANSWERED, *MORE), (ASKED, Turn("user", "Well?"), ANSWERED)),
        ((*PAIR, Turn("assistant", "Or 5."), *MORE), PAIR),
        ((*PAIR, SYSTEM, *MORE), PAIR),
        ((Turn("text", "2+2 is 4"),), (Turn("text", "2+2 is 4"),)),
    ],
    ids=[
        *("one", "two", "system", "greeting", "both", "asked twice", "answered twice"),
        *("later system", "text"),
    ],
)
def test_first_round_of_a_dialogue_is_kept(turns: tuple[Turn, ...], kept: tuple[Turn, ...]) -> None:
    assert first_round(turns) == kept


def test_first_answer_not_to_be_learned_drops_the_row() -> None:
    with pytest.raises(RowError, match=FIRST_NOT_LEARNED):
        first_round((ASKED, Turn("assistant", "4", learn=False), *MORE))
