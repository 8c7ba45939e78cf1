"""The cause of a death, from real tracebacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import run_python

from plugin.parent.last_words import LastWords

PROGRAMS = {
    "print('all is well')": "",
    "print('Traceback (most recent call last):')": "",
    "raise ValueError('a: b')": "ValueError: a: b",
    "raise ImportError('first\\nsecond')": "ImportError: first",
    "import atexit; atexit.register(print, 'bye'); import nowhere": "ModuleNotFoundError: No module named 'nowhere'",
    "exec('try:\\n  1 / 0\\nexcept ZeroDivisionError:\\n  raise KeyError(3)')": (
        "KeyError: 3 (from ZeroDivisionError: division by zero)"
    ),
    "import traceback\nfor n in 1, 2:\n  try: raise KeyError(n)\n  except KeyError: traceback.print_exc()": "KeyError: 2",
}


@pytest.mark.parametrize(("program", "cause"), PROGRAMS.items())
def test_the_cause_is_the_last_error_with_its_origin(
    program: str, cause: str, tmp_path: Path
) -> None:
    done = run_python(program, cwd=tmp_path)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert LastWords(lines).cause == cause
