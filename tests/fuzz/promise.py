"""Check of the promise for wrong input.

The job is done, or it is refused within seconds, in lines of one form with a listed exit code.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from hypothesis import event

from plugin.base.errors import Code, JobError, Problem

T = TypeVar("T")
CPU_S, WAIT_S = 5.0, 30.0
REFUSALS = (
    Code.CONFIGURATION,
    Code.DATA,
    Code.MODEL,
    Code.OUT_OF_MEMORY,
    Code.NON_FINITE,
    Code.DISK,
)
LINE = re.compile(r"error\[(\d+)\]: (.+?): expected (.+), got (.*)\.")


class TooSlow(AssertionError):
    """An input that keeps the program busy longer than a person waits."""


def kept(job: Callable[[], T]) -> T | None:
    """Run a job. Returns its result, or None if it was refused as promised."""
    try:
        with limited():
            done = job()
    except JobError as error:
        event(f"refused: {error.problems[0].field}: {error.problems[0].expected[:40]}")
        check_problems(error.problems)
        return None
    return done


def check_problems(problems: Iterable[Problem]) -> None:
    """Assert that problems have a code and a line of the promised form."""
    for problem in problems:
        assert problem.code in REFUSALS, problem
        check_line(problem.line)
        writable(problem.as_json())


def check_line(line: str) -> None:
    """Assert that an error is one line of the promised form."""
    assert line.splitlines() == [line], repr(line)
    found = LINE.match(line)
    assert found, repr(line)
    assert int(found[1]) in REFUSALS, line


def writable(value: object) -> None:
    """Assert that a value can be written as JSON in UTF-8, as answers are."""
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooSlow in a job that takes too long, and again after it if it caught the first."""
    late: list[int] = []

    def ring(number: int, frame: FrameType | None) -> None:
        late.append(number)
        raise TooSlow(f"more than {CPU_S:g} s of CPU time, or {WAIT_S:g} s of waiting")

    # The tight limit is CPU time, so that a busy machine fails no test.
    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, CPU_S),
        (signal.SIGALRM, signal.ITIMER_REAL, WAIT_S),
    )
    before = [signal.signal(number, ring) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
    assert not late, "the job caught its own TooSlow"
