"""Dataset formats: the columns that win, the turns of each row, and the reasons to drop one."""

from __future__ import annotations

import pickle

import pytest

from plugin.base.errors import JobError
from plugin.data.formats import (
    FORMATS,
    Dropped,
    Example,
    Format,
    RowResult,
    detect_format,
    read_example,
)
from plugin.data.sources import Row
from plugin.data.templates.form import compile_templates
from plugin.data.turns import REASONS, Turn

USER, BOT = Turn("user", "2+2?"), Turn("assistant", "4")


def read(values: dict[str, object], stage: str = "sft", text_field: str = "text") -> RowResult:
    found, _ = detect_format(values, None, text_field, stage)
    return read_example(Row("t.jsonl:7", values), found)


def message(role: object, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ({"instruction": "2+2?", "output": "4"}, (USER, BOT)),
        ({"instruction": "2+2?", "input": " ", "output": 4}, (USER, BOT)),
        ({"instruction": "Add", "input": "2+2", "output": "4"}, (Turn("user", "Add\n2+2"), BOT)),
        ({"prompt": "2+2?", "completion": "4"}, (USER, BOT)),
        ({"prompt": "2+2?", "response": "4"}, (USER, BOT)),
        ({"question": "2+2?", "answer": "4"}, (USER, BOT)),
        (
            {"question": "a\n\nb", "answer": " c\n\nd"},
            (Turn("user", "a\n\nb"), Turn("assistant", " c\n\nd")),
        ),
        (
            {
                "prompt": [message("system", "Be brief."), message("user", "2+2?")],
                "completion": [message("assistant", "4")],
            },
            (Turn("system", "Be brief."), USER, BOT),
        ),
        (
            {
                "messages": [
                    message("user", "2+2?"),
                    message("assistant", "4"),
                    message("user", "and 3+3?"),
                ]
            },
            (USER, BOT),  # nobody answers the last turn
        ),
        (
            {
                "messages": [
                    message("system", ""),
                    message("user", "2+2?"),
                    message("assistant", "4"),
                ]
            },
            (USER, BOT),
        ),
        (
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            (USER, BOT),
        ),
        ({"conversations": [message("user", "2+2?"), message("assistant", 4)]}, (USER, BOT)),
        (
            {
                "conversations": [
                    {"role": None, "content": None, "from": "human", "value": "2+2?"},
                    message("assistant", "4"),
                ]
            },
            (USER, BOT),
        ),
        (
            {
                "messages": [
                    message("assistant", "Hello"),
                    message("user", "2+2?"),
                    message("assistant", "4"),
                ]
            },
            (Turn("assistant", "Hello"), USER, BOT),
        ),
        ({"text": "one\n\ntwo"}, (Turn("text", "one\n\ntwo"),)),
    ],
)
def test_row_of_each_format_is_read(values: dict[str, object], turns: tuple[Turn, ...]) -> None:
    assert read(values) == Example("t.jsonl:7", turns)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"instruction": "q", "output": " \n"}, "empty response"),
        ({"prompt": "q", "completion": None}, "empty response"),
        ({"prompt": None, "response": "a"}, "empty prompt"),
        ({"question": ["q"], "answer": "a"}, "message is not an object"),
        ({"instruction": {"q": 1}, "output": "a"}, "content is not text"),
        ({"question": "\ud83d", "answer": "a"}, "text is not valid unicode"),
        ({"messages": "hello"}, "no list of messages"),
        ({"messages": None}, "no list of messages"),
        ({"messages": ["hello"]}, "message is not an object"),
        ({"messages": [{"content": "hello"}]}, "message without a role"),
        ({"messages": [message("tool", "hello")]}, "unknown role"),
        ({"messages": [message(["user"], "hello")]}, "unknown role"),
        ({"messages": [message("user", [{"type": "text"}])]}, "content is not text"),
        ({"messages": [message("user", "q")]}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [message("assistant", "a")]}, "no user turn"),
        ({"messages": [message("user", "q"), message("assistant", "")]}, "empty response"),
        ({"text": ""}, "empty text"),
        ({"text": ["a"]}, "content is not text"),
    ],
)
def test_malformed_row_is_dropped_with_its_reason(values: dict[str, object], reason: str) -> None:
    assert read(values) == Dropped("t.jsonl:7", reason)
    assert reason in REASONS


def test_several_fitting_formats_take_the_first_with_a_note() -> None:
    every_column = [column for found in FORMATS for column in found.needs] + ["text"]
    found, notes = detect_format(every_column, None, "text", "sft")
    assert found.name == "instruction/output"
    assert notes[0].startswith(
        "detected format 'instruction/output' used; the columns also fit prompt/completion, "
    )
    assert detect_format(["question", "answer", "id"], None, "text", "sft") == (FORMATS[3], [])


def test_plain_text_in_fine_tuning_is_noted() -> None:
    found, notes = detect_format(["body"], None, "body", "sft")
    assert found.name == "text"
    assert notes == ["column 'body' is plain text: it has no prompt, so every token is trained"]


def test_unknown_columns_fail_and_list_the_known_formats() -> None:
    with pytest.raises(JobError) as caught:
        detect_format(["a", "b c"], None, "text", "sft")
    assert caught.value.code == 3
    for part in (
        "dataset_name",
        "columns 'a', 'b c'",
        "prompt/completion",
        "conversations",
        "text column 'text'",
    ):
        assert part in str(caught.value)


def test_pretraining_reads_the_text_column_alone() -> None:
    assert read({"question": "q", "answer": "a", "body": "t"}, "pretrain", "body") == Example(
        "t.jsonl:7", (Turn("text", "t"),)
    )
    templates = compile_templates("{{ body }}", "", "{{ body }}")
    assert detect_format(["body"], templates, "body", "pretrain")[1] == [
        "the templates are not used: pretraining reads column 'body'"
    ]
    with pytest.raises(
        JobError, match=r"text_field: expected a column of the data, got 'text' where .* 'body'"
    ) as caught:
        detect_format(["body"], None, "text", "pretrain")
    assert caught.value.code == 2


def templated(columns: list[str], input_template: str = "{{ hint }}") -> tuple[Format, list[str]]:
    templates = compile_templates("Q: {{ question }}", input_template, "A: {{ answer }}")
    return detect_format(columns, templates, "text", "sft")


def test_templates_apply_when_their_columns_exist() -> None:
    found, notes = templated(["question", "answer", "hint"])
    assert (found.name, notes) == ("templates", [])
    row = Row("r", {"question": "2+2?", "hint": "think", "answer": 4})
    assert read_example(row, found) == Example(
        "r", (Turn("user", "Q: 2+2?\nthink"), Turn("assistant", "A: 4"))
    )
    row = Row("r", {"question": "2+2?", "hint": " ", "answer": 4})
    assert read_example(row, found) == Example(
        "r", (Turn("user", "Q: 2+2?"), Turn("assistant", "A: 4"))
    )
    row = Row("r", {"question": [1], "answer": "a"})
    assert read_example(row, found) == Dropped("r", "template failed on this row")


def test_templates_without_columns_yield_to_the_detected_format() -> None:
    found, notes = templated(["question", "answer"])
    assert found.name == "question/answer"
    assert notes == [
        "the templates are not used: column 'hint' not in the data (question, answer)",
        "detected format 'question/answer' used",
    ]
    assert templated(["question", "answer"], "")[0].name == "templates"


@pytest.mark.slow
def test_template_over_its_limits_is_no_row_error() -> None:
    loop = "{% for a in range(9999) %}" * 2 + "{% endfor %}" * 2
    found, _ = detect_format(["a"], compile_templates(loop, "", "{{ a }}"), "text", "sft")
    with pytest.raises(JobError, match=r"instruction_template.*CPU time"):
        read_example(Row("r", {"a": "x"}), found)


def test_formats_can_be_pickled() -> None:
    for found in (*FORMATS, templated(["question", "answer", "hint"])[0]):
        assert pickle.loads(pickle.dumps(found)).name == found.name
