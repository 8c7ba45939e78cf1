"""Dataset formats: the columns that hold prompt and response, and reasons to drop a row.

A format is one line of FORMATS. Nothing is guessed from the text itself: no row is printed as
Python, and no text is cut at a blank line into a "prompt" and an "answer". A row that does not fit
its format becomes a Dropped with its reason, for the caller to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..base.errors import JobError, Problem, data_error
from .seen import Role, RowError, Seen, is_empty
from .sources import Row
from .templates.form import Templates, render_rows
from .turns import Turn, chat_of, messages_of, plain, rounds_of, text_of, turns_of, with_system

SYSTEM = ("system", "system_prompt")
HISTORY = "history"
CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
Values = Mapping[str, object]


@dataclass(frozen=True)
class Example:
    """A usable row: a chat that ends with the assistant's turn, or a single turn of role `text`."""

    row: str  # its id, as in Row
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be trained on."""

    row: str  # its id, as in Row
    reason: str  # a short phrase to count by


RowResult = Example | Dropped


@dataclass(frozen=True)
class Format:
    """Meaning of a dataset's columns.

    `read` turns a row's values into turns or raises RowError. `templates` take its place if given.
    """

    name: str
    needs: tuple[str, ...]
    read: Callable[[Values, Seen], tuple[Turn, ...]]
    takes: tuple[str, ...] = ()  # optional columns
    templates: Templates | None = None


def _before(values: Values, seen: Seen) -> list[Turn]:
    """Read what precedes a row's own turns: its system prompt and the rounds of its history."""
    turns = rounds_of(values.get(HISTORY), seen)
    for column in SYSTEM:
        if text := text_of(values.get(column)):
            if (longer := with_system(turns, text)) is None:
                seen.columns([column])
            else:
                turns = longer
    return turns


def _side(value: object, role: Role, seen: Seen) -> list[Turn]:
    """Read one side of a pair: a text, or messages (TRL's conversational form) or their JSON."""
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
    """Read an instruction, its input on a new line, and the answer."""
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
        asked = []  # the answer's side is the full chat, prompt included
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
    """Read the texts that the templates made of a row. Raises RowError."""
    if isinstance(texts, RowError):
        raise texts
    instruction, extra, output = texts
    user = _with_extra(instruction, extra)
    return chat_of([Turn("user", text_of(user.text)), Turn("assistant", text_of(output))])


def _unread(values: Values, seen: Seen) -> tuple[Turn, ...]:
    raise AssertionError("templates write this row")


def _tasks(prompt: str, response: str, *extras: str) -> Format:
    needs, takes = (prompt, response), (*extras, *SYSTEM, HISTORY)
    return Format(f"{prompt}/{response}", needs, partial(_task, prompt, extras, response), takes)


def _pairs(prompt: str, response: str) -> Format:
    needs, takes = (prompt, response), (*SYSTEM, HISTORY)
    return Format(f"{prompt}/{response}", needs, partial(_pair, prompt, response), takes)


# In order of preference; `text`, whose column the user names, comes last.
FORMATS = (
    _tasks("instruction", "output", "input"),
    _pairs("prompt", "completion"),
    _pairs("prompt", "response"),
    _pairs("question", "answer"),
    *(Format(column, (column,), partial(_messages, column), SYSTEM) for column in CHATS),
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


def detect_format(
    columns: Iterable[str],
    templates: Templates | None,
    text_field: str,
    stage: Literal["sft", "pretrain"],
) -> tuple[Format, list[str]]:
    """Detect the format of these columns.

    Returns the format, and log lines about requests that it does not honour. Raises JobError: exit
    3 if no format fits, exit 2 if the columns of a pretraining run lack `text_field`.
    """
    seen = list(dict.fromkeys(columns))
    text = Format("text", (text_field,), partial(_plain, text_field))
    if stage == "pretrain":
        return text, _pretraining_notes(seen, templates, text_field)

    notes: list[str] = []
    if templates:
        needs = templates.columns()
        absent = sorted(needs - set(seen))
        if not absent:
            return Format("templates", tuple(sorted(needs)), _unread, templates=templates), notes
        missing = f"{_names('column', absent)} not in the data ({', '.join(seen)})"
        notes.append(f"the templates are not used: {missing}")
    fitting = [known for known in (*FORMATS, text) if set(known.needs) <= set(seen)]
    if not fitting:
        raise _no_format(seen, text_field)
    chosen, *rest = fitting
    others = [other for other in rest if not set(other.needs) <= {*chosen.needs, *chosen.takes}]
    if notes or others:
        names = ", ".join(other.name for other in others)
        also = f"; the columns also fit {names}" if others else ""
        notes.append(f"detected format {chosen.name!r} used{also}")
    if chosen is text:
        no_prompt = "it has no prompt, so every token is trained"
        notes.append(f"column {text_field!r} is plain text: {no_prompt}")
    return chosen, notes


def _no_format(seen: list[str], text_field: str) -> JobError:
    known = ", ".join(known.name for known in FORMATS)
    expected = f"columns of a known format ({known}, or the text column {text_field!r})"
    fix = "Rename the columns, give the templates, or name a column of plain text in text_field."
    return data_error("dataset_name", expected, _names("column", seen), fix)


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
    rows: Sequence[Row], formats: Sequence[Format], seen: Seen
) -> Iterator[RowResult]:
    """Read each row by its format; a Dropped has one of turns.REASONS.

    Whatever is not read of a row is added to `seen`. Raises JobError (exit 2) if a template exceeds
    its limits: no other row can then be trusted to render.
    """
    written: dict[int, tuple[str, str, str] | RowError] = {}
    for templates in {each.templates for each in formats if each.templates}:
        places = [place for place, each in enumerate(formats) if each.templates == templates]
        texts = render_rows(templates, [rows[place].values for place in places])
        written |= dict(zip(places, texts, strict=True))
    for place, (row, row_format) in enumerate(zip(rows, formats, strict=True)):
        yield _read(row, row_format, seen, written.get(place))


def _read(
    row: Row, row_format: Format, seen: Seen, texts: tuple[str, str, str] | RowError | None
) -> RowResult:
    seen.row = row.id
    seen.rows += 1
    read = {*row_format.needs, *row_format.takes}
    seen.columns(
        [name for name, value in row.values.items() if name not in read and not is_empty(value)]
    )
    try:
        return Example(row.id, _templated(texts) if texts else row_format.read(row.values, seen))
    except RowError as error:
        seen.dropped(error.reason, error.detail)
        return Dropped(row.id, error.reason)


def read_example(row: Row, row_format: Format, seen: Seen | None = None) -> RowResult:
    """Read one row as read_examples does."""
    return next(read_examples([row], [row_format], Seen() if seen is None else seen))
