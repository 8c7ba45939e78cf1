"""Protocol of an offline scorer, and its reading of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..base.errors import Code, JobError, Problem, one_line, renamed_field
from ..data.sources import Row, read_rows
from ..data.turns import Turn
from .figures import Figure
from .subject import Ids, Subject

MOST_PROBLEMS = 5  # named of one file
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class How:
    """Options of the scorers."""

    limit: int | None = None  # rows scored; None: all
    num_fewshot: int | None = None  # None: what the task says, 0 for a scorer
    shots: str = ""  # file of the examples shown; empty: the first rows of the scored file
    template: bool = True  # prompts by the chat template, otherwise plain text
    slices: str = "year"  # of perplexity: year or month
    max_length: int = 1024  # tokens of a window of perplexity, and of a document of loss
    out: Path = Path()  # folder of a scorer's own files
    model: str = ""  # its name in them


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of a task."""

    figures: dict[str, Figure]
    rows: int  # scored
    of: int  # rows of the file
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedRows:
    """Checked rows of a file, and what a scorer computes from them."""

    of: int
    score: Callable[[Subject], Scored]


Read = Callable[[str, How], CheckedRows]  # raises JobError (exit 3) naming every broken row


class Broken(ValueError):
    """A row that a scorer cannot use; the text says what it lacks."""


def read_items(
    file: str, limit: int | None, make: Callable[[Row], Item], *, text_rows: str = "paragraph"
) -> tuple[list[Item], int]:
    """Read the first `limit` rows of a file by `make`. Returns them, and the rows of the file.

    Raises JobError (exit 3) naming the first broken rows, and a file without rows.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    count = 0
    with renamed_field("dataset_name", "tasks"):
        for row in read_rows(file, "train", text_rows=text_rows):
            count += 1
            if limit is not None and count > limit:
                continue
            try:
                items.append(make(row))
            except Broken as broken:
                problems.append(Problem("tasks", str(broken), row.id, "", Code.DATA))
    if problems:
        raise JobError(*problems[:MOST_PROBLEMS])
    if not items:
        raise JobError(Problem("tasks", "rows to score", f"none in {file}", "", Code.DATA))
    return items, count


def text_in(row: Row, column: str) -> str:
    """Return a column of a row as text. Raises Broken."""
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        raise Broken(f"a row with text in column {column}")
    return value


def prompt_ids(subject: Subject, turns: Sequence[Turn]) -> Ids:
    """Return the ids of a dialogue up to the assistant's next turn."""
    return subject.chat.prompt(turns)


def respelled(subject: Subject, text: str) -> str:
    """Return a text as the model's tokenizer spells it, which may lower its case."""
    return subject.chat.text(subject.chat.plain_ids([text])[0]).strip()


def sampling_of(subject: Subject) -> dict[str, Any]:
    """Return the settings of sampling that a protocol names, and how its answers end."""
    settings = subject.sampler
    ends = [one_line(str(subject.chat.tokenizer.decode([end]))) for end in subject.chat.end_ids]
    return {
        "max_new_tokens": settings.max_new_tokens,
        "steps": settings.steps,
        "block_length": settings.block_length,
        "threshold": settings.threshold,
        "factor": settings.factor,
        "entropy_bound": settings.entropy_bound,
        "temperature": settings.temperature,
        "ends": f"the first of {' '.join(ends)}; none is suppressed, none is counted as sure",
    }
