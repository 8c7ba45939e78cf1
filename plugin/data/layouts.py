"""What a row means: which columns hold the prompt and the response, and what is wrong with a row that has neither.

A layout is one line of LAYOUTS. Nothing is guessed from the text itself: no row is printed as Python, and no text is
cut at a blank line into a "prompt" and an "answer". A row that does not fit is returned as its reason, for the caller
to count and drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..job import JobError, Problem, data_error
from .sandbox import TEMPLATE_FAILED, TEXT_TOO_LONG, RowError
from .sources import Row
from .templates import Templates, render

NO_MESSAGES = "no list of messages"
NOT_AN_OBJECT = "message is not an object"
NO_ROLE = "message without a role"
UNKNOWN_ROLE = "unknown role"
NOT_TEXT = "content is not text"
BROKEN_TEXT = "text is not valid unicode"
NO_ASSISTANT = "no assistant turn"
NO_USER = "no user turn"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
EMPTY_TEXT = "empty text"
REASONS = (
    *(NO_MESSAGES, NOT_AN_OBJECT, NO_ROLE, UNKNOWN_ROLE, NOT_TEXT, BROKEN_TEXT, NO_ASSISTANT, NO_USER),
    *(EMPTY_PROMPT, EMPTY_RESPONSE, EMPTY_TEXT, TEMPLATE_FAILED, TEXT_TOO_LONG),
)

Role = Literal["system", "user", "assistant", "text"]
_ROLES: dict[object, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """One row as a document: a chat that ends with the assistant's turn, or a single turn of role `text`."""

    id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Layout:
    """`read` turns a row's values into turns, or raises RowError. Picklable, so that worker processes can share it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Mapping[str, object]], tuple[Turn, ...]]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise RowError(NOT_TEXT)
    try:
        value.encode()  # JSON can spell half a surrogate pair, on which tokenizers fail
    except UnicodeEncodeError as error:
        raise RowError(BROKEN_TEXT) from error
    return value


def _message(item: object) -> Turn:
    """One {role, content} or ShareGPT {from, value} message; columnar files hold all four keys, some of them None."""
    if not isinstance(item, Mapping):
        raise RowError(NOT_AN_OBJECT)
    role = item.get("role") if item.get("role") is not None else item.get("from")
    if role is None:
        raise RowError(NO_ROLE)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(UNKNOWN_ROLE)
    content = item.get("content") if item.get("content") is not None else item.get("value")
    return Turn(_ROLES[role], _text(content))


def _side(value: object, role: Role) -> list[Turn]:
    """One side of a pair: a text, or a list of messages (TRL's conversational form)."""
    return [_message(item) for item in value] if isinstance(value, list) else [Turn(role, _text(value))]


def _chat(turns: list[Turn]) -> tuple[Turn, ...]:
    """Check a chat and cut what follows the last assistant turn, which no response answers."""
    # Many data sets spell "no system prompt" as an empty one.
    turns = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise RowError(NO_ASSISTANT)
    if not any(turn.role == "user" for turn in turns):
        raise RowError(NO_USER)
    for turn in turns:
        if not turn.text.strip():
            raise RowError(EMPTY_RESPONSE if turn.role == "assistant" else EMPTY_PROMPT)
    return tuple(turns)


def _user_turn(instruction: str, extra: str) -> Turn:
    return Turn("user", f"{instruction}\n{extra}" if extra.strip() else instruction)


def _alpaca(values: Mapping[str, object]) -> tuple[Turn, ...]:
    user = _user_turn(_text(values.get("instruction")), _text(values.get("input")))
    return _chat([user, Turn("assistant", _text(values.get("output")))])


def _pair(prompt: str, response: str, values: Mapping[str, object]) -> tuple[Turn, ...]:
    return _chat(_side(values.get(prompt), "user") + _side(values.get(response), "assistant"))


def _messages(column: str, values: Mapping[str, object]) -> tuple[Turn, ...]:
    messages = values.get(column)
    if not isinstance(messages, list):
        raise RowError(NO_MESSAGES)
    return _chat([_message(item) for item in messages])


def _plain(column: str, values: Mapping[str, object]) -> tuple[Turn, ...]:
    text = _text(values.get(column))
    if not text.strip():
        raise RowError(EMPTY_TEXT)
    return (Turn("text", text),)


def _templated(templates: Templates, values: Mapping[str, object]) -> tuple[Turn, ...]:
    extra = render(templates.input, values) if templates.input else ""
    user = _user_turn(render(templates.instruction, values), extra)
    turns = [user, Turn("assistant", render(templates.output, values))]
    return _chat([Turn(turn.role, _text(turn.text)) for turn in turns])


# In order of preference; `text`, whose column the user names, comes last.
LAYOUTS = (
    Layout("instruction/output", ("instruction", "output"), _alpaca),
    Layout("prompt/completion", ("prompt", "completion"), partial(_pair, "prompt", "completion")),
    Layout("prompt/response", ("prompt", "response"), partial(_pair, "prompt", "response")),
    Layout("question/answer", ("question", "answer"), partial(_pair, "question", "answer")),
    Layout("messages", ("messages",), partial(_messages, "messages")),
    Layout("conversations", ("conversations",), partial(_messages, "conversations")),
)


def detect_layout(
    columns: Iterable[str], templates: Templates | None, text_field: str, stage: Literal["sft", "pretrain"]
) -> tuple[Layout, list[str]]:
    """The layout that these columns have, and log lines on what was asked for and is not done.

    Raises JobError: exit 3 when no layout fits, exit 2 when `text_field` is not among the columns of a pretraining run.
    """
    seen = list(dict.fromkeys(columns))
    text = Layout("text", (text_field,), partial(_plain, text_field))
    if stage == "pretrain":
        return text, _pretraining_notes(seen, templates, text_field)

    notes: list[str] = []
    if templates:
        absent = sorted(templates.columns() - set(seen))
        if not absent:
            return Layout("templates", tuple(sorted(templates.columns())), partial(_templated, templates)), notes
        notes.append(f"the templates are not used: {_names('column', absent)} not in the data ({', '.join(seen)})")
    fitting = [layout for layout in (*LAYOUTS, text) if set(layout.needs) <= set(seen)]
    if not fitting:
        known = ", ".join(layout.name for layout in LAYOUTS)
        fix = "Rename the columns, give the templates, or name a column of plain text in text_field."
        expected = f"columns of a known layout ({known}, or the text column {text_field!r})"
        raise data_error("dataset_name", expected, f"{_names('column', seen)}", fix)
    chosen, *others = fitting
    if notes or others:
        also = f"; the columns also fit {', '.join(layout.name for layout in others)}" if others else ""
        notes.append(f"detected layout {chosen.name!r} used{also}")
    if chosen is text:
        notes.append(f"column {text_field!r} is plain text: it has no prompt, so every token is trained")
    return chosen, notes


def _pretraining_notes(seen: list[str], templates: Templates | None, text_field: str) -> list[str]:
    if text_field not in seen:
        got = f"{text_field!r} where the data has {_names('column', seen)}"
        fix = "Name the column to train on, or set training_stage to sft."
        raise JobError(Problem("text_field", "a column of the data", got, fix))
    return [f"the templates are not used: pretraining reads column {text_field!r}"] if templates else []


def _names(noun: str, names: list[str]) -> str:
    if not names:
        return f"no {noun}"
    return f"{noun}{'' if len(names) == 1 else 's'} {', '.join(repr(name) for name in names)}"


def read_example(row: Row, layout: Layout) -> Example | str:
    """The row as a document, or the reason it is dropped (one of REASONS).

    Raises JobError (exit 2) when a template breaks its limits, since then no row can be trusted to render.
    """
    try:
        return Example(row.id, layout.read(row.values))
    except RowError as error:
        return error.reason
