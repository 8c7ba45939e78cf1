"""Refusal of a job that asks for too much: one short line, soon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.support import ERROR

from plugin.base.errors import JobError, Problem

LONGEST = 300  # characters of an error's line


def refused(job: Callable[[], object], within_s: float = 5) -> Problem:
    """Return the first problem of a job that is refused within `within_s` of CPU time."""
    began_s = time.process_time()
    with pytest.raises(JobError) as caught:
        job()
    assert time.process_time() - began_s < within_s
    for problem in caught.value.problems:
        assert ERROR.match(problem.line), problem.line
        assert len(problem.line) < LONGEST, problem.line
    return caught.value.problems[0]


@contextmanager
def short_paths(folder: Path) -> Iterator[None]:
    """Measure lines without the long names of pytest's folders."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
