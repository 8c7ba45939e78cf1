"""Problems: one line each, whatever text they quote."""

from __future__ import annotations

import json

import pytest

from plugin.base.errors import Problem, shown


@pytest.mark.parametrize(
    "odd", ["\n", "\r\n", "\u2028", "\x85", "\x1b", "\udcff", "\0", "\u202e", "\u2066"]
)
def test_a_problem_with_any_text_is_one_writable_line(odd: str) -> None:
    problem = Problem("dataset_name", f"a{odd}b", f"c{odd}d", f"e{odd}f")
    assert len(problem.line.splitlines()) == 1
    assert odd not in problem.line
    json.dumps(problem.as_json(), ensure_ascii=False).encode()


def test_a_problem_with_plain_text_stays_as_it_is() -> None:
    assert (
        Problem("model_name", "é 🦆", "x\\n").line
        == "error[2]: model_name: expected é 🦆, got x\\n."
    )


def test_shown_text_keeps_lines_and_steers_nothing() -> None:
    """Audit 15, 16, 17: escape sequences, carriage returns and direction overrides are escaped."""
    assert shown("a\tb\r\nc\n") == "a\tb\nc\n"
    assert shown("\x1b]0;t\x07\r!\x9b2J\u202e") == "\\x1b]0;t\\x07\\r!\\x9b2J\\u202e"
