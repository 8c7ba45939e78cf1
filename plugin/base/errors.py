"""Problems, errors, outcomes and exit codes, the same for every program.

A *problem* is one mistake that a user can correct. Checks collect as many problems as they can and
raise them together as one `JobError`, so nobody corrects a form five times to see five messages.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
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


# Characters that control a terminal, reverse the direction of text, end a line, or do not exist in
# UTF-8.
_UNSHOWN = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def one_line(text: str) -> str:
    """Escape a text that may hold anything, such as a file's name, for one line; tabs stay."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(value: object) -> str:
    """Return one line of JSON that a terminal can show; JSON escapes only half of `_UNSHOWN`."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(text: str) -> str:
    """Escape a text of several lines, such as an answer; its lines and tabs stay."""
    return "\n".join(map(one_line, text.replace("\r\n", "\n").split("\n")))


@dataclass(frozen=True)
class Problem:
    """One mistake: its field, what was expected, what was given, and how to correct it."""

    field: str
    expected: str
    got: str
    fix: str = ""
    code: int = Code.CONFIGURATION

    def __post_init__(self) -> None:
        for field in fields(self):  # values are quoted from files, forms, libraries
            if isinstance(text := getattr(self, field.name), str):
                object.__setattr__(self, field.name, one_line(text))

    def __str__(self) -> str:
        text = f"{self.field}: expected {self.expected}, got {self.got}."
        return f"{text} {self.fix}" if self.fix else text

    @property
    def line(self) -> str:
        """Return the one line that stderr, the host and `run.json` show."""
        return f"error[{int(self.code)}]: {self}"

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "code": int(self.code)}


class JobError(ValueError):
    """A job that cannot run, with every problem found; the first one gives the exit code."""

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


@contextmanager
def renamed_field(before: str, now: str) -> Generator[None]:
    """Report problems of the field `before` under the name `now`, whose value was checked."""
    try:
        yield
    except JobError as error:
        problems = (
            replace(problem, field=now) if problem.field == before else problem
            for problem in error.problems
        )
        raise JobError(*problems) from error


def first_line(error: object) -> str:
    """Return an exception's first line, or its type where it has none, without a full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def internal_problem(error: BaseException, field: str, see: str) -> Problem:
    """Describe an exception that nobody expected; `see` names what to attach to a report."""
    got = f"{type(error).__name__}: {first_line(error)}"
    return Problem(
        field, "no internal error", got, f"Please report this with {see}.", Code.INTERNAL
    )


def print_problems(problems: Iterable[Problem]) -> None:
    """Print the line of every problem on stderr."""
    for problem in problems:
        print(problem.line, file=sys.stderr, flush=True)


def report(error: JobError) -> int:
    """Print the problems of `error` on stderr and return its exit code."""
    print_problems(error.problems)
    return error.code


def guarded(job: Callable[[], int], failed: Callable[[JobError], int] = report) -> int:
    """Run `job` to its exit code. After an error, return that of `failed`, which reports it.

    Every program ends through here: a failure always gets its line, our own bug its traceback too.
    """
    try:
        return job()
    except JobError as error:
        return failed(error)
    except Exception as error:
        traceback.print_exc()
        return failed(JobError(internal_problem(error, "main", "the lines above")))
