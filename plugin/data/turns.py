"""Turns of a dialogue, read from a row's messages, and the reasons to drop a row.

A message is {role, content} or ShareGPT's {from, value}. Its content is a text or a list of parts
of type text. A separate field of reasoning becomes the turn's thought, and a mark that an answer is
not to be learned is obeyed. Every other key is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from .files.readers import without_nan
from .seen import ROLES, UNKNOWN_ROLE, Role, RowError, Seen, is_empty, quoted_names
from .templates.form_language import TEMPLATE_FAILED, TEXT_TOO_LONG

NO_MESSAGES = "no list of messages"
NO_HISTORY = "history is not a list of pairs"
NOT_AN_OBJECT = "message is not an object"
NO_ROLE = "message without a role"
TOOL_CALLS = "message with tool calls"
NOT_TEXT = "content is not text"
NOT_FINITE = "number is infinite"
BROKEN_TEXT = "text is not valid unicode"
NO_ASSISTANT = "no assistant turn"
NO_USER = "no user turn"
NOT_LEARNED = "every answer is marked as not to be learned"
FIRST_NOT_LEARNED = "the first answer is marked as not to be learned"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
EMPTY_TEXT = "empty text"
REASONS = (
    *(NO_MESSAGES, NO_HISTORY, NOT_AN_OBJECT, NO_ROLE, UNKNOWN_ROLE, TOOL_CALLS, NOT_TEXT),
    *(NOT_FINITE, BROKEN_TEXT, NO_ASSISTANT, NO_USER, NOT_LEARNED, FIRST_NOT_LEARNED),
    *(EMPTY_PROMPT, EMPTY_RESPONSE, EMPTY_TEXT, TEMPLATE_FAILED, TEXT_TOO_LONG),
)

# Keys of one round of a dialogue: the user's text, the assistant's answer.
ROUNDS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("instruction", "output"),
    ("input", "output"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
)
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_LEARN_IF_TRUE = ("weight", "loss_weight", "train", "training", "trainable", "loss")
_SKIP_IF_TRUE = ("masked",)
_CALLS = ("tool_calls", "function_call")
_YES_OR_NO = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Turn:
    """A message of a dialogue, or a plain text."""

    role: Role
    text: str
    thought: str = ""  # an assistant's reasoning before its answer
    learn: bool = True  # False where the data marks an answer as not to be learned

    @property
    def with_thought(self) -> str:
        """Write the text below its thought, for templates with no other place for a thought."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.text}" if self.thought else self.text


def text_of(value: object) -> str:
    """Read a cell or a content as text. Raises RowError."""
    if value is None:
        return ""
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise RowError(NOT_FINITE)
        return str(value)
    if not isinstance(value, str):
        raise RowError(NOT_TEXT, f"content is {kind_of(value)}, expected text")
    try:
        value.encode()  # JSON can spell half a surrogate pair; tokenizers fail on it
    except UnicodeEncodeError as error:
        raise RowError(BROKEN_TEXT) from error
    return value


def kind_of(value: object) -> str:
    """Name the kind of a value as JSON does."""
    names = {
        list: "a list",
        dict: "an object",
        str: "text",
        bool: "a yes or no",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)


def turns_of(value: object, seen: Seen) -> list[Turn]:
    """Read a list of messages, an object of lists, or the JSON text of either. Raises RowError."""
    messages = messages_of(value)
    if messages is None:
        raise RowError(NO_MESSAGES, f"{kind_of(value)} where messages are expected")
    _check_roles(messages, seen)
    return [turn for item in messages for turn in _turns_of_item(item, seen)]


def messages_of(value: object) -> list[Any] | None:
    """Find the messages of a cell; return None if it holds something else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = without_nan(json.loads(value))
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list):
        return cast("list[Any]", value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        columns = {str(key): item for key, item in items if item is not None}
        lengths = {len(item) if isinstance(item, list) else -1 for item in columns.values()}
        if len(lengths) == 1 and -1 not in lengths:
            rows = zip(*columns.values(), strict=True)
            return [dict(zip(columns, row, strict=True)) for row in rows]
    return None


def rounds_of(value: object, seen: Seen) -> list[Turn]:
    """Read a history: pairs of [user, assistant], or input of `turns_of`. Raises RowError."""
    if is_empty(value):
        return []
    rounds = messages_of(value)
    if rounds is None:
        raise RowError(NO_HISTORY, f"{kind_of(value)} in history")
    if not all(isinstance(item, list) for item in rounds):
        return turns_of(rounds, seen)
    turns: list[Turn] = []
    for pair in rounds:
        if len(pair) != 2:
            raise RowError(NO_HISTORY, f"a list of {len(pair)} in history")
        turns += [Turn("user", text_of(pair[0])), Turn("assistant", text_of(pair[1]))]
    return turns


def chat_of(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Check a chat and cut it after its last answer to be learned. Raises RowError."""
    # Many datasets spell "no system prompt" as an empty one.
    kept = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    if not any(turn.role == "assistant" for turn in kept):
        raise RowError(NO_ASSISTANT)
    while kept and not (kept[-1].role == "assistant" and kept[-1].learn):
        kept.pop()
    if not kept:
        raise RowError(NOT_LEARNED)
    if not any(turn.role == "user" for turn in kept):
        raise RowError(NO_USER)
    for turn in kept:
        if not turn.text.strip():
            raise RowError(EMPTY_RESPONSE if turn.role == "assistant" else EMPTY_PROMPT)
    return tuple(kept)


def _check_roles(messages: Sequence[object], seen: Seen) -> None:
    """Raise RowError if a role is unknown, after all roles of the row are counted.

    An unknown role is the cause of the row's other faults, so it is checked first.
    """
    roles = [_role(item) for item in messages if isinstance(item, Mapping)]
    unknown = [
        role for role in roles if role is not None and not (isinstance(role, str) and role in ROLES)
    ]
    for role in unknown:
        seen.role(role if isinstance(role, str) else kind_of(role))
    if unknown:
        raise RowError(UNKNOWN_ROLE)


def _role(item: Mapping[Any, Any]) -> object:
    return item.get("role") if item.get("role") is not None else item.get("from")


def _turns_of_item(item: object, seen: Seen) -> list[Turn]:
    if not isinstance(item, Mapping):
        expected = "expected an object with role and content"
        raise RowError(NOT_AN_OBJECT, f"message is {kind_of(item)}, {expected}")
    fields = cast("Mapping[str, Any]", item)
    if _role(fields) is not None:
        return [_message(fields, seen)]
    filled = {key for key, value in fields.items() if value is not None}
    for asked, answered in ROUNDS:
        if {asked, answered} <= filled:
            seen.keys([key for key in filled - {asked, answered} if not is_empty(fields[key])])
            user = Turn("user", text_of(fields[asked]))
            return [user, Turn("assistant", text_of(fields[answered]))]
    raise RowError(NO_ROLE, f"message with the keys {quoted_names(sorted(filled))}")


def _message(fields: Mapping[str, Any], seen: Seen) -> Turn:
    """Read one message. Columnar files give it every key of any message, most of them None."""
    role = ROLES[str(_role(fields))]
    if any(not is_empty(fields.get(key)) for key in _CALLS):
        raise RowError(TOOL_CALLS)
    name = "content" if fields.get("content") is not None else "value"
    text, thought = _content(fields.get(name))
    read = {"role", "from", name, *_CALLS}
    for key in THOUGHTS:
        if isinstance(value := fields.get(key), str) and role == "assistant":
            read.add(key)
            thought = thought or value.strip()
    learn, marks = _mark(fields)
    learn = learn or role != "assistant"
    seen.keys(
        [key for key, value in fields.items() if key not in read | marks and not is_empty(value)]
    )
    seen.turn(thought=bool(thought), learn=learn)
    return Turn(role, text, thought, learn)


def _content(value: object) -> tuple[str, str]:
    """Read a content, a text or a list of text and thinking parts, as (text, thought)."""
    if not isinstance(value, list):
        return text_of(value), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in cast("list[Any]", value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(text_of(part["text"]))
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            thoughts.append(text_of(part["thinking"]))
        elif kind in ("tool_use", "tool_call"):
            raise RowError(TOOL_CALLS)
        else:
            what = f"with a part of type {kind!r}" if kind else f"of {kind_of(part)}"
            raise RowError(NOT_TEXT, f"content is a list {what}, expected text")
    return "".join(texts), "\n".join(thoughts).strip()


def _mark(fields: Mapping[str, Any]) -> tuple[bool, set[str]]:
    """Return (is this turn to be learned, the keys that decide it); only weights 0 and 1 do."""
    learn, read = True, set[str]()
    for key in (*_LEARN_IF_TRUE, *_SKIP_IF_TRUE):
        value = fields.get(key)
        said = _YES_OR_NO.get(value.strip().lower()) if isinstance(value, str) else value
        if isinstance(said, bool | int | float) and said in (0, 1):
            read.add(key)
            learn = learn and bool(said) == (key in _LEARN_IF_TRUE)
    return learn, read


def with_system(turns: list[Turn], text: str) -> list[Turn] | None:
    """Put a system turn before the others; return None if they have one."""
    return None if any(turn.role == "system" for turn in turns) else [Turn("system", text), *turns]


def plain(text: str) -> tuple[Turn, ...]:
    """Make the turn of a text without a prompt. Raises RowError if it is empty."""
    if not text.strip():
        raise RowError(EMPTY_TEXT)
    return (Turn("text", text),)


def learned_places(turns: Sequence[Turn]) -> list[int]:
    """List the places of the answers to be learned."""
    return [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learn]


def random_prefix(turns: Sequence[Turn], uniform: float) -> tuple[Turn, ...]:
    """Cut a dialogue after the answer that `uniform` in [0, 1) chooses, as LLaDA does."""
    places = learned_places(turns)
    return tuple(turns[: places[int(uniform * len(places))] + 1]) if places else tuple(turns)


def first_round(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the first round of a checked chat: from its first user turn to the answer to it.

    System turns before it are kept, and an answer before it is not. A plain text stays as it is.
    Raises RowError if the answer is marked as not to be learned.
    """
    roles = [turn.role for turn in turns]
    if "user" not in roles:
        return tuple(turns)
    start = roles.index("user")
    end = roles.index("assistant", start)
    if not turns[end].learn:
        raise RowError(FIRST_NOT_LEARNED)
    before = [turn for turn in turns[:start] if turn.role == "system"]
    return (*before, *turns[start : end + 1])


def escaped(turn: Turn, escape: Any) -> Turn:
    """Pass a turn's text and thought through `escape`."""
    return replace(turn, text=escape(turn.text), thought=escape(turn.thought))
