"""What every program of this product says about one job: problems, errors, outcomes and exit codes.

A *problem* is one thing a user can mend. Checks collect as many as they can and raise them together
as one `JobError`, so a user never mends a form five times to see five messages.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from enum import IntEnum


class Code(IntEnum):
    """Exit codes, the same for every program and for `run.json`."""

    OK = 0
    INTERNAL = 1
    CONFIGURATION = 2
    DATA = 3
    MODEL = 4
    OUT_OF_MEMORY = 5
    NON_FINITE = 6
    DISK = 7
    WORKER_DIED = 8
    HANG = 9
    INTERRUPTED = 130
    TERMINATED = 143


# Characters that steer a terminal, turn the direction of what follows, end a line, or cannot be
# written in UTF-8.
_UNSHOWN = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def one_line(text: str) -> str:
    """Write a text that may hold anything, such as a file's name, so that it can be shown in a
    line; tabs stay.
    """
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(value: object) -> str:
    """Return one line of JSON that a terminal can show:

    JSON itself lets half of what one_line escapes stand.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(text: str) -> str:
    """Write a text of several lines, such as an answer, so that it can be shown: its lines and tabs
    stay, nothing else steers.
    """
    return "\n".join(map(one_line, text.replace("\r\n", "\n").split("\n")))


@dataclass(frozen=True)
class Problem:
    """One mistake: the field that holds it, what was expected there, what came, and what to do
    about it.
    """

    field: str
    expected: str
    got: str
    fix: str = ""
    code: int = Code.CONFIGURATION

    def __post_init__(self) -> None:
        for field in fields(self):  # what came is quoted from files, forms and libraries
            if isinstance(text := getattr(self, field.name), str):
                object.__setattr__(self, field.name, one_line(text))

    def __str__(self) -> str:
        text = f"{self.field}: expected {self.expected}, got {self.got}."
        return f"{text} {self.fix}" if self.fix else text

    @property
    def line(self) -> str:
        """The one line that stderr, the host and `run.json` show."""
        return f"error[{int(self.code)}]: {self}"

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "code": int(self.code)}


class JobError(ValueError):
    """A job that cannot go on, with every problem found; the first one gives the exit code."""

    def __init__(self, *problems: Problem):
        assert problems, "a JobError names at least one problem"
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems

    @property
    def code(self) -> int:
        return int(self.problems[0].code)


def data_error(field: str, expected: str, got: str, fix: str = "") -> JobError:
    return JobError(Problem(field, expected, got, fix, Code.DATA))


def model_error(field: str, expected: str, got: str, fix: str = "") -> JobError:
    return JobError(Problem(field, expected, got, fix, Code.MODEL))
