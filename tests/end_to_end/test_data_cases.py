"""Datasets of the kinds that users report, through all that `check` and `train` prepare."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.support import try_out_here, write_rows
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from plugin.assembly.corpus import Prepared, prepare_corpus
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.data.tokenizer import train_tokenizer

THINGS = ("cat", "dog", "bird", "tree", "house", "river", "stone", "cloud", "lamp", "door")


@dataclass
class Made:
    """Prepared documents of a dataset, and its log lines."""

    prepared: Prepared
    lines: list[str]

    def documents(self) -> list[str]:
        """Return every document as a person sees it, those of evaluation behind the others."""
        parts = (self.prepared.train, self.prepared.evaluation)
        return [
            self.prepared.chat.shown(part[place].ids.tolist())
            for part in parts
            for place in range(len(part))
        ]

    def learned(self) -> list[str]:
        """Return the learned tokens of each document as text."""
        parts = (self.prepared.train, self.prepared.evaluation)
        each = (part[place] for part in parts for place in range(len(part)))
        return [self.prepared.chat.shown(one.ids[one.supervised].tolist()) for one in each]

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


Make = Callable[..., Made]


@pytest.fixture
def make(tiny_config: Path, tmp_path: Path) -> Make:
    def made(
        rows: Iterable[Mapping[str, object]] | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **values: Any,
    ) -> Made:
        path = rows if isinstance(rows, Path) else write_rows(tmp_path / "data.jsonl", rows)
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp_path / "tok")
            values["tokenizer_name"] = str(tmp_path / "tok")
        moment = values.pop("moment", None)
        given = {"model_config": str(tiny_config), "dataset_name": str(path), "max_length": 128}
        lines: list[str] = []
        params = Params.model_validate(given | values)
        return Made(prepare_corpus(params, lines.append, moment=moment), lines)

    return made


def tokens(
    *added: str, special: bool = True, template: str | None = None
) -> PreTrainedTokenizerBase:
    """Return a tokenizer of bytes with tokens that a user added."""
    made = train_tokenizer(["Name a thing like this, one after the other."], 320)
    made.add_tokens([AddedToken(token, special=special, normalized=not special) for token in added])
    made.chat_template = template
    return made


def message(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def chats(*answers: Mapping[str, object], asked: str = "Name {} {}") -> list[dict[str, object]]:
    """Return ten rows of one question and these messages, {} replaced by the row's thing."""
    return [
        {
            "messages": [
                message("user", asked.format(thing, place)),
                *(json.loads(json.dumps(one).replace("{}", thing)) for one in answers),
            ]
        }
        for place, thing in enumerate(THINGS)
    ]


# --- columns and messages


def test_system_and_history_columns_become_turns(make: Make) -> None:
    rows = [
        {
            "system": f"Answer like a {thing}.",
            "instruction": f"And its colour {place}?",
            "input": "",
            "output": f"The {thing} is blue.",
            "history": [[f"Which thing {place}?", f"A {thing}."]],
        }
        for place, thing in enumerate(THINGS)
    ]
    made = make(rows)
    wanted = "⟦[CLS]⟧Answer like a cat.⟦[SEP]⟧Which thing 0?⟦[SEP]⟧A cat.⟦[SEP]⟧And its colour 0?⟦[SEP]⟧The cat is blue.⟦[SEP]⟧"
    assert wanted in made.documents()
    assert "The cat is blue.⟦[SEP]⟧" in made.learned()
    assert not made.said("not read")


def test_unread_columns_are_named_with_their_counts(make: Make) -> None:
    rows = [
        {"question": f"q {place}", "answer": "a", "context": "c" if place % 2 else "", "id": place}
        for place in range(10)
    ]
    assert make(rows).said("train: columns 'id', 'context' are not read (10 and 5 rows)")


def test_tool_calls_are_dropped_and_never_half_an_answer(make: Make) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x":"{}"}'}}
    with pytest.raises(JobError, match="10 x message with tool calls") as caught:
        make(chats(message("assistant", "One moment.", tool_calls=[call])))
    assert caught.value.code == 3
    mixed = [
        *chats(message("assistant", "One moment.", tool_calls=[call]))[:4],
        *chats(message("assistant", "{}", tool_calls=[]))[4:],
    ]
    made = make(mixed)
    assert made.prepared.reports["train"].dropped == {"message with tool calls": 4}
    assert not any("moment" in document for document in made.documents())


@pytest.mark.parametrize("source", ["sharegpt", "openai"])
def test_unknown_roles_are_named_with_those_known(source: str, make: Make) -> None:
    def row(thing: str) -> dict[str, object]:
        if source == "openai":
            call = message(
                "assistant",
                None,
                tool_calls=[{"id": "c1", "function": {"name": "look", "arguments": "{}"}}],
            )
            return {
                "messages": [
                    message("user", thing),
                    call,
                    message("tool", "5"),
                    message("assistant", f"{thing} costs 5."),
                ]
            }
        said = (
            ("human", thing),
            ("function_call", "{}"),
            ("observation", "5"),
            ("gpt", f"{thing} costs 5."),
        )
        return {"conversations": [{"from": who, "value": text} for who, text in said]}

    with pytest.raises(JobError) as caught:
        make([row(thing) for thing in THINGS])
    roles = {
        "sharegpt": "unknown roles 'function_call', 'observation'",
        "openai": "unknown role 'tool'",
    }[source]
    line = f"{roles} (first at data.jsonl:1); understood are system, user, human, assistant, gpt"
    assert caught.value.code == 3
    assert line in str(caught.value)
    few = make(
        [*chats(message("assistant", "{}")), row("lamp")]
        if source == "openai"
        else [row("cat"), *chats(message("gpt", "{}"))]
    )
    assert few.said(
        line.replace("data.jsonl:1)", "data.jsonl:11)" if source == "openai" else "data.jsonl:1)")
    )


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_before_the_answer(key: str, make: Make) -> None:
    made = make(chats(message("assistant", "3", **{key: "{} has 3 letters"})))
    assert "<think>\ncat has 3 letters\n</think>\n\n3⟦[SEP]⟧" in made.learned()
    assert made.said("10 answers with reasoning")


def test_parts_of_type_text_are_joined(make: Make) -> None:
    text = [{"type": "text", "text": "a {}"}, {"type": "text", "text": ", no more"}]
    assert "a cat, no more⟦[SEP]⟧" in make(chats(message("assistant", text))).learned()
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(JobError) as caught:
        make(chats(message("assistant", image)))
    assert (
        "content is a list with a part of type 'image_url', expected text (first at data.jsonl:1)"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"train": False},
        {"loss": "false"},
        {"loss_weight": 0.0},
        {"masked": True},
        {"training": 0},
    ],
)
def test_an_answer_marked_as_not_to_be_learned_is_not(mark: dict[str, object], make: Make) -> None:
    rows = chats(
        message("assistant", "no {}", **mark),
        message("user", "then"),
        message("assistant", "yes {}"),
    )
    made = make(rows, train_turns="all")
    assert set(made.learned()) == {f"yes {thing}⟦[SEP]⟧" for thing in THINGS}
    assert made.said("answers marked as not to be learned")
    whole = make(rows, mask_prompt_loss=False)
    assert all("no " not in learned and "then" in learned for learned in whole.learned())
    last = chats(
        message("assistant", "yes {}"),
        message("user", "then"),
        message("assistant", "no {}", **mark),
    )
    assert set(make(last).documents()) == {
        f"⟦[CLS]⟧Name {thing} {n}⟦[SEP]⟧yes {thing}⟦[SEP]⟧" for n, thing in enumerate(THINGS)
    }


def test_first_round_alone_is_read_and_held_out(make: Make) -> None:
    """Two dialogues that begin alike are one prompt: evaluation never asks what training saw."""
    rows = [
        {"messages": [message("user", f"Name {thing}"), message("assistant", thing), *more]}
        for thing in THINGS
        for more in (
            [],
            [message("user", f"and {thing}?"), message("assistant", f"{thing} too")],
        )
    ]
    rows.append(
        {
            "messages": [
                message("user", "Hi"),
                message("assistant", "no", weight=0),
                message("user", "then"),
                message("assistant", "yes"),
            ]
        }
    )
    made = make(rows, train_turns="first", eval_share=0.2)
    wanted = [f"⟦[CLS]⟧Name {thing}⟦[SEP]⟧{thing}⟦[SEP]⟧" for thing in THINGS for _ in (1, 2)]
    assert sorted(made.documents()) == sorted(wanted)
    assert set(made.learned()) == {f"{thing}⟦[SEP]⟧" for thing in THINGS}
    parts = (made.prepared.train, made.prepared.evaluation)
    train, evaluation = (
        {tuple(part[place].ids.tolist()) for place in range(len(part))} for part in parts
    )
    assert evaluation
    assert not train & evaluation
    assert made.prepared.reports["train"].dropped == {
        "the first answer is marked as not to be learned": 1
    }


def test_a_weight_between_is_named_as_unread(make: Make) -> None:
    made = make(chats(message("assistant", "{}", weight=0.5, name="x")))
    assert made.said("train: message keys 'weight', 'name' are not read (10 and 10 messages)")


def test_nan_is_an_empty_cell_and_infinity_no_text(make: Make) -> None:
    cells = [math.nan if place % 2 == 0 else f"like {thing}" for place, thing in enumerate(THINGS)]
    made = make(
        [
            {"instruction": "Name", "input": cell, "output": thing}
            for cell, thing in zip(cells, THINGS, strict=True)
        ]
    )
    assert "⟦[CLS]⟧Name⟦[SEP]⟧cat⟦[SEP]⟧" in made.documents()
    made = make(
        [
            {"instruction": f"Name {thing}", "output": cell}
            for cell, thing in zip(cells, THINGS, strict=True)
        ]
    )
    assert made.prepared.reports["train"].dropped == {"empty response": 5}
    assert not any("nan" in document for document in made.documents())
    made = make(
        [{"instruction": f"q {n}", "output": math.inf if n < 3 else "a"} for n in range(20)]
    )
    assert made.prepared.reports["train"].dropped == {"number is infinite": 3}


def test_rendered_text_is_reported(make: Make) -> None:
    rows = [
        {"text": f"<|im_start|>user\n{n}<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"}
        for n in range(12)
    ]
    assert make(rows).said("11 rows, such as data.jsonl:")
    assert make(rows).said("looks like an already rendered chat")
    assert not make([{"text": f"the user said {n}; [1] a <b> ### c"} for n in range(12)]).said(
        "already rendered"
    )


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "one\ntwo\nthree\n",
            "3 lines are 1 row, because a row of a .txt is a paragraph; text_rows line",
        ),
        ("line\n" * 25 + "\n" + "line\n" * 15, "40 lines are 2 rows"),
        ("a\nb\n\nc\nd\n\ne\n", ""),
        ("one line", ""),
    ],
)
def test_a_txt_whose_rows_look_like_lines_gets_a_note(
    text: str, note: str, make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text, encoding="utf-8")
    made = make(path, training_stage="pretrain", eval_strategy="no")
    assert made.said(note) if note else not made.said("lines are")
    lines = make(path, training_stage="pretrain", eval_strategy="no", text_rows="line")
    assert not lines.said("lines are")
    assert lines.prepared.reports["train"].rows == len([line for line in text.splitlines() if line])


def test_hold_out_is_logged(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    write_rows(
        folder / "train.jsonl", [{"prompt": f"q{n % 4}", "response": f"a{n}"} for n in range(20)]
    )
    write_rows(
        folder / "validation.jsonl",
        [{"prompt": "q1", "response": "a1"}, {"prompt": "q9", "response": "a9"}],
    )
    made = make(folder)
    assert made.prepared.reports["train"].dropped == {"prompt and answer also in the eval split": 1}
    assert made.said(
        "drop_eval_prompts: 4 rows of train with a prompt of the eval split and another answer"
    )
    strict = make(folder, drop_eval_prompts=True)
    assert strict.prepared.reports["train"].dropped == {"prompt also in the eval split": 5}
    few = make([{"prompt": f"q{n % 2}", "response": f"a{n}"} for n in range(20)], eval_share=0.2)
    assert [few.prepared.reports[split].documents for split in ("train", "eval")] == [16, 4]
    assert few.said("answers are held out: evaluation's prompts are trained on too")
    assert make([{"prompt": f"q{n}", "response": "a"} for n in range(9)]).said(
        "eval_share: 0.1 of 9 rows is less than one row"
    )


# --- tokens and templates


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_stay_undivided_in_data(special: bool, make: Make) -> None:
    rows = chats(message("assistant", "<think>\nit is {}\n</think>\n\n[MASK] {}"))
    made = make(rows, tokens("<think>", "</think>", special=special), eval_strategy="no")
    assert "⟦<think>⟧\nit is cat\n⟦</think>⟧\n\n[MASK] cat⟦[SEP]⟧" in made.learned()
    assert made.said("[MASK] in a text: it is read as text, not as the token")
    answer = next(place for place, text in enumerate(made.learned()) if "it is cat" in text)
    one = made.prepared.train[answer]
    assert made.prepared.chat.mask_id not in one.ids
    assert (
        made.prepared.chat.decode(one.ids[one.prompt :].tolist())
        == "<think>\nit is cat\n</think>\n\n[MASK] cat"
    )


def test_a_token_differs_from_its_spelling_in_the_preview(
    make: Make, tiny_config: Path, tmp_path: Path
) -> None:
    path = write_rows(
        tmp_path / "spelled.jsonl", [{"prompt": "[SEP] <think>?", "response": "yes"}] * 10
    )
    tokens("<think>").save_pretrained(tmp_path / "words")
    given = {
        "model_config": str(tiny_config),
        "dataset_name": str(path),
        "tokenizer_name": str(tmp_path / "words"),
    }
    params = Params.model_validate(
        given | {"max_length": 64, "train_device": "cpu", "eval_strategy": "no"}
    )
    answer = try_out_here(params, 1)
    assert answer["problems"] == []
    assert answer["report"]["preview"][0]["runs"][0]["text"] == "⟦[CLS]⟧[SEP] ⟦<think>⟧?⟦[SEP]⟧"
    assert "10 rows, such as spelled.jsonl:1" in "\n".join(answer["notes"])


ON_ITS_OWN_LINE = (
    "{% for m in messages %}{% if m.role=='user' %}[Ask]\n{{ m.content|trim }}\n[/Ask]\n\n{% else %}[Reply]\n"
    "{{ m.content|trim }}\n[/Reply]\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}[Reply]\n{% endif %}"
)


def test_answer_ends_with_the_marker_behind_its_line_break(make: Make) -> None:
    made = make(
        chats(message("assistant", "one\n{}")),
        tokens("[Ask]", "[/Ask]", "[Reply]", "[/Reply]", template=ON_ITS_OWN_LINE),
    )
    assert "one\ncat\n⟦[/Reply]⟧" in made.learned()
    chat = made.prepared.chat
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_ids[0]) == "[/Reply]"
    one = made.prepared.train[0]
    assert chat.decode(one.ids[one.prompt :].tolist()).startswith("one\n")


ALTERNATING = (
    "{% if messages[0].role=='system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<t>{{ m.role }}\n{{ m.content|trim }}</t>\n{% endfor %}{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)


def test_one_row_that_the_template_refuses_is_dropped(make: Make) -> None:
    rows = chats(message("assistant", "{}"))
    rows[6]["messages"] = [message("system", "Be kind."), *rows[6]["messages"]]
    made = make(rows, tokens("<t>", "</t>", template=ALTERNATING), eval_strategy="no")
    report, reason = (
        made.prepared.reports["train"],
        "chat template refuses system, user, assistant: System role not supported",
    )
    assert (report.documents, report.dropped, report.dropped_rows) == (
        9,
        {reason: 1},
        {reason: ["data.jsonl:7"]},
    )
    for row in rows:
        row["messages"] = [message("system", "Be kind."), *row["messages"]]
    with pytest.raises(JobError, match="System role not supported") as caught:
        make(
            rows, eval_strategy="no", tokenizer_name=str(Path(made.prepared.tokenizer.name_or_path))
        )
    assert caught.value.code == 3


THINKING = (
    "{% set ns=namespace(last=-1) %}{% for m in messages %}{% if m.role=='user' %}{% set ns.last=loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role=='assistant' %}{% set c=m.content %}{% if '</think>' in c %}"
    "{% set c=c.split('</think>')[-1].lstrip('\n') %}{% endif %}{% if loop.index0 > ns.last %}<t>assistant\n<think>\n\n</think>"
    "\n\n{{ c }}</t>\n{% else %}<t>assistant\n{{ c }}</t>\n{% endif %}{% else %}<t>{{ m.role }}\n{{ m.content }}</t>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)


@pytest.mark.parametrize("turns", ["last", "all"])
def test_what_is_trained_is_what_a_thinking_template_writes(turns: str, make: Make) -> None:
    def thought(words: str) -> dict[str, object]:
        return message("assistant", f"<think>\nnow {{}}\n</think>\n\n{words}")

    rows = chats(thought("first"), message("user", "Two"), thought("second"))
    made = make(
        rows,
        tokens("<t>", "</t>", "<think>", "</think>", template=THINKING),
        train_turns=turns,
        eval_strategy="no",
    )
    words, documents = made.prepared.tokenizer, made.prepared.train
    for place, row in enumerate(rows):
        wanted = words.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
        assert documents[place].ids.tolist() == wanted[: documents[place].ids.size]
        assert words.decode(wanted[documents[place].ids.size :]) == "\n"
    last = "⟦<think>⟧\n\n⟦</think>⟧\n\nsecond⟦</t>⟧"
    assert set(made.learned()) == {last if turns == "last" else f"first⟦</t>⟧{last}"}
    assert made.said(
        "10 rows, such as data.jsonl:1, data.jsonl:2, data.jsonl:3: text that the chat template changes or omits"
    )


CLOCK = (
    "<t>system\nToday: {{ strftime_now('%Y %H:%M:%S') }}</t>{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}</t>{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)


def test_a_templates_clock_stands_still(make: Make) -> None:
    moment = datetime(2024, 2, 29, 12, 30, 5)
    made = make(
        chats(message("assistant", "{}")), tokens("<t>", "</t>", template=CLOCK), moment=moment
    )
    assert all("Today: 2024 12:30:05⟦</t>⟧" in document for document in made.documents())
    assert made.said("the chat template writes the time; for this run it is 2024-02-29 12:30:05")
