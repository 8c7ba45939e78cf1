"""What a row means: which columns hold the prompt and the response, and what is wrong with a row
that has neither.

A layout is one line of LAYOUTS. Nothing is guessed from the text itself: no row is printed as
Python, and no text is cut at a blank line into a "prompt" and an "answer". A row that does not fit
is returned as its reason, for the caller to count and drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..base.errors import JobError, Problem, data_error
from .seen import Role, Seen, is_empty
from .sources import Row
from .templates.form import Templates, render_rows
from .templates.sandbox import RowError
from .turns import Turn, chat_of, messages_of, plain, rounds_of, text_of, turns_of, with_system

SYSTEM = ("system", "system_prompt")
HISTORY = "history"
CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
Values = Mapping[str, object]


@dataclass(frozen=True)
class Example:
    """One row as a document: a chat that ends with the assistant's turn, or a single turn of role
    `text`.
    """

    id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Layout:
    """`read` turns a row's values into turns, or raises RowError, unless `templates` write them."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Values, Seen], tuple[Turn, ...]]
    takes: tuple[str, ...] = ()  # columns that it reads where they are
    templates: Templates | None = None


def _before(values: Values, seen: Seen) -> list[Turn]:
    """Read what stands before a row's own turns: its system prompt, the rounds of its history."""
    turns = rounds_of(values.get(HISTORY), seen)
    for column in SYSTEM:
        if text := text_of(values.get(column)):
            if (longer := with_system(turns, text)) is None:
                seen.columns([column])
            else:
                turns = longer
    return turns


def _side(value: object, role: Role, seen: Seen) -> list[Turn]:
    """Read one side of a pair: a text, or messages (TRL's conversational form), JSON or not."""
    messages = (
        None
        if isinstance(value, str) and not value.lstrip().startswith("[{")
        else messages_of(value)
    )
    if messages is None or (isinstance(value, str) and not _are_messages(messages)):
        return [Turn(role, text_of(value))]
    return turns_of(messages, seen)


def _are_messages(items: list[object]) -> bool:
    return all(
        isinstance(item, Mapping) and (item.get("role") or item.get("from")) for item in items
    )


def _with_extra(instruction: str, extra: str) -> Turn:
    return Turn("user", f"{instruction}\n{extra}" if extra.strip() else instruction)


def _task(
    prompt: str, extras: tuple[str, ...], response: str, values: Values, seen: Seen
) -> tuple[Turn, ...]:
    """Read an instruction, its subject on a new line, and the answer."""
    user = Turn("user", text_of(values.get(prompt)))
    for extra in extras:
        user = _with_extra(user.text, text_of(values.get(extra)))
    return chat_of([*_before(values, seen), user, Turn("assistant", text_of(values.get(response)))])


def _pair(prompt: str, response: str, values: Values, seen: Seen) -> tuple[Turn, ...]:
    asked, answered = (
        _side(values.get(prompt), "user", seen),
        _side(values.get(response), "assistant", seen),
    )
    if any(turn.role == "user" for turn in answered) and all(turn in answered for turn in asked):
        asked = []  # the answer's side is the whole chat, prompt and all
    turns = [*asked, *answered]
    before = _before(values, seen)
    if turns and turns[0].role == "system" and before:
        seen.columns([column for column in SYSTEM if not is_empty(values.get(column))])
        before = [turn for turn in before if turn.role != "system"]
        turns, before = [*before, *turns[1:]], turns[:1]
    return chat_of([*before, *turns])


def _messages(column: str, values: Values, seen: Seen) -> tuple[Turn, ...]:
    turns = turns_of(values.get(column), seen)
    for name in SYSTEM:
        if text := text_of(values.get(name)):
            if (longer := with_system(turns, text)) is None:
                seen.columns([name])
            else:
                turns = longer
    return chat_of(turns)


def _plain(column: str, values: Values, seen: Seen) -> tuple[Turn, ...]:
    return plain(text_of(values.get(column)))


def _templated(texts: tuple[str, str, str] | RowError) -> tuple[Turn, ...]:
    """Read what the templates made of a row. Raise RowError."""
    if isinstance(texts, RowError):
        raise texts
    instruction, extra, output = texts
    user = _with_extra(instruction, extra)
    return chat_of([Turn("user", text_of(user.text)), Turn("assistant", text_of(output))])


def _unread(values: Values, seen: Seen) -> tuple[Turn, ...]:
    raise AssertionError("templates write this row")


def _tasks(prompt: str, response: str, *extras: str) -> Layout:
    needs, takes = (prompt, response), (*extras, *SYSTEM, HISTORY)
    return Layout(f"{prompt}/{response}", needs, partial(_task, prompt, extras, response), takes)


def _pairs(prompt: str, response: str) -> Layout:
    return Layout(
        f"{prompt}/{response}",
        (prompt, response),
        partial(_pair, prompt, response),
        (*SYSTEM, HISTORY),
    )


# In order of preference; `text`, whose column the user names, comes last.
LAYOUTS = (
    _tasks("instruction", "output", "input"),
    _pairs("prompt", "completion"),
    _pairs("prompt", "response"),
    _pairs("question", "answer"),
    *(Layout(column, (column,), partial(_messages, column), SYSTEM) for column in CHATS),
    _tasks("instruction", "response", "input", "context"),
    _pairs("question", "response"),
    _pairs("query", "response"),
    _pairs("prompt", "answer"),
    _pairs("prompt", "output"),
    _pairs("prompt", "chosen"),
    _pairs("input", "output"),
    _pairs("user", "assistant"),
    _pairs("human", "assistant"),
)


def detect_layout(
    columns: Iterable[str],
    templates: Templates | None,
    text_field: str,
    stage: Literal["sft", "pretrain"],
) -> tuple[Layout, list[str]]:
    """The layout that these columns have, and log lines on what was asked for and is not done.

    Raises JobError: exit 3 when no layout fits, exit 2 when `text_field` is not among the columns
    of a pretraining run.
    """
    seen = list(dict.fromkeys(columns))
    text = Layout("text", (text_field,), partial(_plain, text_field))
    if stage == "pretrain":
        return text, _pretraining_notes(seen, templates, text_field)

    notes: list[str] = []
    if templates:
        absent = sorted(templates.columns() - set(seen))
        if not absent:
            return Layout(
                "templates", tuple(sorted(templates.columns())), _unread, templates=templates
            ), notes
        notes.append(
            f"the templates are not used: {_names('column', absent)} not in the data ({', '.join(seen)})"
        )
    fitting = [layout for layout in (*LAYOUTS, text) if set(layout.needs) <= set(seen)]
    if not fitting:
        known = ", ".join(layout.name for layout in LAYOUTS)
        fix = (
            "Rename the columns, give the templates, or name a column of plain text in text_field."
        )
        expected = f"columns of a known layout ({known}, or the text column {text_field!r})"
        raise data_error("dataset_name", expected, f"{_names('column', seen)}", fix)
    chosen, *rest = fitting
    others = [layout for layout in rest if not set(layout.needs) <= {*chosen.needs, *chosen.takes}]
    if notes or others:
        also = (
            f"; the columns also fit {', '.join(layout.name for layout in others)}"
            if others
            else ""
        )
        notes.append(f"detected layout {chosen.name!r} used{also}")
    if chosen is text:
        notes.append(
            f"column {text_field!r} is plain text: it has no prompt, so every token is trained"
        )
    return chosen, notes


def _pretraining_notes(seen: list[str], templates: Templates | None, text_field: str) -> list[str]:
    if text_field not in seen:
        got = f"{text_field!r} where the data has {_names('column', seen)}"
        fix = "Name the column to train on, or set training_stage to sft."
        raise JobError(Problem("text_field", "a column of the data", got, fix))
    return (
        [f"the templates are not used: pretraining reads column {text_field!r}"]
        if templates
        else []
    )


def _names(noun: str, names: list[str]) -> str:
    if not names:
        return f"no {noun}"
    return f"{noun}{'' if len(names) == 1 else 's'} {', '.join(repr(name) for name in names)}"


def read_examples(
    rows: Sequence[Row], layouts: Sequence[Layout], seen: Seen
) -> Iterator[Example | str]:
    """Read each row by its layout: a document, or the reason it is dropped (one of turns.REASONS).

    What a row leaves unread is added to `seen` as it is read. Raise JobError (exit 2) when a
    template goes too far, since then no row can be trusted to render.
    """
    written: dict[int, tuple[str, str, str] | RowError] = {}
    for templates in {layout.templates for layout in layouts if layout.templates}:
        places = [place for place, layout in enumerate(layouts) if layout.templates == templates]
        texts = render_rows(templates, [rows[place].values for place in places])
        written |= dict(zip(places, texts, strict=True))
    for place, (row, layout) in enumerate(zip(rows, layouts, strict=True)):
        yield _read(row, layout, seen, written.get(place))


def _read(
    row: Row, layout: Layout, seen: Seen, texts: tuple[str, str, str] | RowError | None
) -> Example | str:
    seen.row = row.id
    seen.rows += 1
    read = {*layout.needs, *layout.takes}
    seen.columns(
        [name for name, value in row.values.items() if name not in read and not is_empty(value)]
    )
    try:
        return Example(row.id, _templated(texts) if texts else layout.read(row.values, seen))
    except RowError as error:
        seen.dropped(error.reason, error.detail)
        return error.reason


def read_example(row: Row, layout: Layout, seen: Seen | None = None) -> Example | str:
    """Read one row, see read_examples."""
    return next(read_examples([row], [layout], Seen() if seen is None else seen))
