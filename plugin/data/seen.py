"""A tally of what a reading of the data met and does not read: columns, message keys, roles,
marks.

Nothing that a row holds is left out in silence: `lines` names it, with counts, for `check` and
`train` alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "text"]
# What a message may call its role.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
UNKNOWN_ROLE = "unknown role"

SHOWN = 12  # names of one line at most
LINES_A_ROW = 10  # lines of a .txt paragraph on average from which its rows look like lines


@dataclass
class Seen:
    """Counts over the rows of one reading. `row` is the row that is being read."""

    row: str = ""
    rows: int = 0
    columns_unread: Counter[str] = field(
        default_factory=Counter[str]
    )  # column -> rows that hold a value there
    keys_unread: Counter[str] = field(default_factory=Counter[str])  # message key -> messages
    roles: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # unknown role -> the first row with it
    details: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # reason -> what its first row holds
    thoughts: int = 0
    unlearned: int = 0
    text_rows: int = 0  # rows of .txt files, each a paragraph
    text_lines: int = 0

    def columns(self, names: Iterable[str]) -> None:
        self.columns_unread.update(names)

    def keys(self, names: Iterable[str]) -> None:
        self.keys_unread.update(names)

    def role(self, name: str) -> None:
        self.roles.setdefault(name, self.row)

    def turn(self, *, thought: bool, learn: bool) -> None:
        self.thoughts += thought
        self.unlearned += not learn

    def dropped(self, reason: str, detail: str) -> None:
        if detail:
            self.details.setdefault(reason, f"{detail} (first at {self.row})")

    def paragraph(self, text: str) -> None:
        self.text_rows += 1
        self.text_lines += text.count("\n") + 1

    def why(self, reason: str) -> str:
        """Explain a reason by what its first row holds."""
        if reason == UNKNOWN_ROLE and self.roles:
            return self._unknown_roles()
        return self.details.get(reason, reason)

    def lines(self) -> list[str]:
        """Write a line for each kind of thing that is not read, or not as it stands."""
        found: list[str] = []
        if self.columns_unread:
            found.append(_unread("column", self.columns_unread, "row"))
        if self.keys_unread:
            found.append(_unread("message key", self.keys_unread, "message"))
        if self.roles:
            found.append(self._unknown_roles())
        found += self.details.values()
        if self.thoughts:
            found.append(
                f"{counted(self.thoughts, 'answer')} with reasoning, which is written before the answer"
            )
        if self.unlearned:
            found.append(f"{counted(self.unlearned, 'answer')} marked as not to be learned")
        if self.text_lines >= 2 and (
            self.text_rows == 1 or self.text_lines >= LINES_A_ROW * self.text_rows
        ):
            found.append(
                f"{self.text_lines} lines are {counted(self.text_rows, 'row')}, because a row of a .txt is a paragraph; "
                "text_rows line makes each line a row"
            )
        return found

    def _unknown_roles(self) -> str:
        first = next(iter(self.roles.values()))
        names = quoted(self.roles)
        return f"unknown role{_s(len(self.roles))} {names} (first at {first}); understood are {', '.join(ROLES)}"


def is_empty(value: object) -> bool:
    """Tell a cell or a message's value that says nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def quoted(names: Iterable[str]) -> str:
    """Put names in quotes; of many, the first ones and their number."""
    given = list(names)
    shown = ", ".join(repr(name) for name in given[:SHOWN])
    return shown if len(given) <= SHOWN else f"{shown}, ... ({len(given)} in all)"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun: `1 row`, `2 rows`."""
    return f"{count} {noun}{_s(count)}"


def _unread(noun: str, counts: Counter[str], unit: str) -> str:
    most = counts.most_common()
    verb = "is" if len(most) == 1 else "are"
    numbers = [str(count) for _, count in most[:SHOWN]]
    listed = numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    plural = _s(int(numbers[-1]) if len(numbers) == 1 else 2)
    return f"{noun}{_s(len(most))} {quoted(name for name, _ in most)} {verb} not read ({listed} {unit}{plural})"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
