"""Tally of the content that a reading of the data does not use: columns, keys, roles, marks.

Nothing that a row holds is ignored silently: `check` and `train` log `lines`, with counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "text"]
# Spellings of a message's role.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
UNKNOWN_ROLE = "unknown role"

SHOWN = 12  # names quoted in a line
# Mean lines of a .txt paragraph from which its author probably meant each line as a row.
LINES_A_ROW = 10


class RowError(ValueError):
    """A row that cannot become training text.

    `reason` is a short phrase to count by; `str()` adds the detail.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass
class Seen:
    """Counts over the rows of one reading. `row` is the row that is being read."""

    row: str = ""
    rows: int = 0
    columns_unread: Counter[str] = field(
        default_factory=Counter[str]
    )  # column -> rows with a value
    keys_unread: Counter[str] = field(default_factory=Counter[str])  # message key -> messages
    roles: dict[str, str] = field(default_factory=dict[str, str])  # unknown role -> its first row
    details: dict[str, str] = field(default_factory=dict[str, str])  # reason -> its first case
    thoughts: int = 0  # answers with reasoning
    unlearned: int = 0  # answers marked as not to be learned
    text_rows: int = 0  # rows of .txt files, each a paragraph
    text_lines: int = 0

    def columns(self, names: Iterable[str]) -> None:
        """Count columns of this row that are not read."""
        self.columns_unread.update(names)

    def keys(self, names: Iterable[str]) -> None:
        """Count keys of a message that are not read."""
        self.keys_unread.update(names)

    def role(self, name: str) -> None:
        """Note an unknown role."""
        self.roles.setdefault(name, self.row)

    def turn(self, *, thought: bool, learn: bool) -> None:
        """Count a turn's reasoning and its mark."""
        self.thoughts += thought
        self.unlearned += not learn

    def dropped(self, reason: str, detail: str) -> None:
        """Note the detail of the first row dropped for a reason."""
        if detail:
            self.details.setdefault(reason, f"{detail} (first at {self.row})")

    def paragraph(self, text: str) -> None:
        """Count a row of a .txt file."""
        self.text_rows += 1
        self.text_lines += text.count("\n") + 1

    def why(self, reason: str) -> str:
        """Explain a reason by the content of its first row."""
        if reason == UNKNOWN_ROLE and self.roles:
            return self._unknown_roles()
        return self.details.get(reason, reason)

    def lines(self) -> list[str]:
        """Write a line for each kind of content that is not read, or not read literally."""
        found: list[str] = []
        if self.columns_unread:
            found.append(_unread("column", self.columns_unread, "row"))
        if self.keys_unread:
            found.append(_unread("message key", self.keys_unread, "message"))
        if self.roles:
            found.append(self._unknown_roles())
        found += self.details.values()
        if self.thoughts:
            answers = with_noun(self.thoughts, "answer")
            found.append(f"{answers} with reasoning, which is written before the answer")
        if self.unlearned:
            found.append(f"{with_noun(self.unlearned, 'answer')} marked as not to be learned")
        if self.text_lines >= 2 and (
            self.text_rows == 1 or self.text_lines >= LINES_A_ROW * self.text_rows
        ):
            rows = with_noun(self.text_rows, "row")
            why = "because a row of a .txt is a paragraph; text_rows line makes each line a row"
            found.append(f"{self.text_lines} lines are {rows}, {why}")
        return found

    def _unknown_roles(self) -> str:
        first = next(iter(self.roles.values()))
        names = f"unknown role{_s(len(self.roles))} {quoted_names(self.roles)} (first at {first})"
        return f"{names}; understood are {', '.join(ROLES)}"


def is_empty(value: object) -> bool:
    """Tell an empty cell or an empty value of a message."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def quoted_names(names: Iterable[str]) -> str:
    """Put names in quotes; of a long list, the first SHOWN names and the count."""
    given = list(names)
    shown = ", ".join(repr(name) for name in given[:SHOWN])
    return shown if len(given) <= SHOWN else f"{shown}, ... ({len(given)} in all)"


def with_noun(count: int, noun: str) -> str:
    """Write a count with its noun: `1 row`, `2 rows`."""
    return f"{count} {noun}{_s(count)}"


def _unread(noun: str, counts: Counter[str], unit: str) -> str:
    most = counts.most_common()
    verb = "is" if len(most) == 1 else "are"
    numbers = [str(count) for _, count in most[:SHOWN]]
    listed = numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    units = f"{unit}{_s(int(numbers[-1]) if len(numbers) == 1 else 2)}"
    names = f"{noun}{_s(len(most))} {quoted_names(name for name, _ in most)}"
    return f"{names} {verb} not read ({listed} {units})"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
