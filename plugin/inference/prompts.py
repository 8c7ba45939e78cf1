"""Prompts of a file, one a row: `prompt` or `messages`, optionally `system` and `infill`.

Other keys are ignored. Rows stream, and every row that cannot be asked is named with its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import Code, JobError, Problem, data_error, renamed_field
from ..data.files.compressed import data_suffix
from ..data.files.readers import READERS, read_file
from ..data.seen import RowError, Seen
from ..data.turns import NO_MESSAGES, Turn, messages_of, text_of, turns_of, with_system
from .ask import check_holes, request_of
from .model import KnownModel

MOST_PROBLEMS = 100  # named one by one


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A row that can be asked."""

    line: int  # of its file, from 1
    text: str  # repeated in the output: the prompt, the last message, or a text with holes
    turns: tuple[Turn, ...]  # empty: `infill` is a plain text
    infill: str | None = None


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Yield the prompts of a file that check_file has found right."""
    with renamed_field("dataset_name", "input"):
        for line, row in read_file(path, "line"):
            yield _prompt(line, row)


def check_file(path: Path) -> int:
    """Return the number of rows of a file. Raises JobError (exit 3) naming every broken row."""
    suffix = data_suffix(path)
    if not path.is_file():
        raise data_error("input", "a file of prompts", f"{path}, which is not there")
    if suffix not in READERS:
        raise data_error("input", f"one of {', '.join(READERS)}", path.name)
    problems = _Problems(path.name)
    count = 0
    with renamed_field("dataset_name", "input"):
        for line, row in read_file(path, "line", lambda line, error: problems.add(error)):
            count += 1
            try:
                _prompt(line, row)
            except JobError as error:
                problems.add(error, line)
    problems.stop()
    if not count:
        raise data_error("input", "at least one prompt", f"{path.name}, which has none")
    return count


def check_prompts(path: Path, known: KnownModel) -> None:
    """Refuse prompts that a model has no room for, or cannot fill. Raises JobError (exit 3)."""
    problems = _Problems(path.name)
    for prompt in read_prompts(path):
        try:
            request_of(known, prompt.turns, prompt.infill)
        except JobError as error:
            problems.add(error, prompt.line)
    problems.stop()


class _Problems:
    """Problems of the rows of one file, each with its line."""

    def __init__(self, name: str):
        self._name, self._found, self._more = name, list[Problem](), 0

    def add(self, error: JobError, line: int = 0) -> None:
        """Keep the problems of a row; those of line 0 name their line themselves."""
        for one in error.problems:
            if len(self._found) == MOST_PROBLEMS:
                self._more += 1
                continue
            field, got = ("input", one.got)
            if line:
                got = f"{self._name} line {line}: {one.field} is {one.got}"
            self._found.append(Problem(field, one.expected, got, one.fix, Code.DATA))

    def stop(self) -> None:
        """Raise JobError (exit 3) if there is any problem."""
        if self._more:
            got = f"{self._name}: {self._more} more lines with problems"
            self._found.append(Problem("input", "prompts on every line", got, "", Code.DATA))
        if self._found:
            raise JobError(*self._found)


def _prompt(line: int, row: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a row. Raises JobError naming the key that is wrong."""
    given = {key: value for key, value in row.items() if value is not None}
    infill = _text(given, "infill")
    system = _text(given, "system") or ""
    if "prompt" in given and "messages" in given:
        raise JobError(Problem("prompt", "a row with prompt or messages", "given with messages"))
    if "messages" in given:
        turns = _messages(given["messages"])
    elif "prompt" in given:
        text = _text(given, "prompt") or ""
        if not text.strip():
            raise JobError(Problem("prompt", "a text", "empty"))
        turns = [Turn("user", text)]
    elif infill is not None:
        turns = list[Turn]()
    else:
        keys = ", ".join(sorted(map(str, row)))[:200] or "no key"
        got = f"without any of them that is not null; its keys: {keys}"
        raise JobError(Problem("row", "the key prompt, messages or infill", got))
    if infill is not None and (problem := check_holes(infill)):
        raise JobError(problem)
    if system.strip():
        if not turns:
            raise JobError(Problem("system", "a prompt as well", "given with infill alone"))
        if (extended := with_system(turns, system)) is None:
            raise JobError(Problem("system", "one system prompt", "given with messages of system"))
        turns = extended
    shown = turns[-1].text if turns else infill or ""
    return Prompt(line=line, text=shown, turns=tuple(turns), infill=infill)


def _text(row: Mapping[str, Any], key: str) -> str | None:
    if key not in row:
        return None
    if not isinstance(row[key], str):
        fix = "Name the key messages." if key == "prompt" and messages_of(row[key]) else ""
        raise JobError(Problem(key, "a text", f"no text but {repr(row[key])[:80]}", fix))
    try:
        return text_of(row[key])
    except RowError as error:
        raise JobError(Problem(key, "a text", str(error))) from error


def _messages(value: Any) -> list[Turn]:
    if messages_of(value) is None:
        raise JobError(Problem("messages", "a list of {role, content}", NO_MESSAGES))
    try:
        turns = turns_of(value, Seen())
    except RowError as error:
        raise JobError(Problem("messages", "a list of {role, content}", str(error))) from error
    if not turns or turns[-1].role != "user":
        got = f"a list that ends with {turns[-1].role}" if turns else "an empty list"
        raise JobError(Problem("messages", "messages that end with the user's", got))
    if any(turn.role == "user" and not turn.text.strip() for turn in turns):
        raise JobError(Problem("messages", "messages with a text", "a list with an empty one"))
    return turns
