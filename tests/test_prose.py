"""Prose lint: docstrings, comments, line widths and test names of all Python files; the guides."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.support import ROOT

PLACES = ("main.py", "plugin", "benches", "examples", "tests")
GUIDES = ("README.md", "CONTRIBUTING.md")
QUESTION = re.compile(r"(What|Whether|How|Where|Which|Who|Whose|Why|When)\b")
BANNED = re.compile(
    r"\b(goes\s+on|go\s+on|is\s+told|are\s+told|cut\s+up|so\s+many|besides)\b", re.IGNORECASE
)
CODE = re.compile(r"`[^`]*`")  # identifiers and commands are exempt
WIDTH, WIDE_SHARE = 100, 0.01
NAME_LENGTH = 60
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*names: str) -> list[Path]:
    """Return these files, and the Python files of these folders, this one left out."""
    found = [
        path
        for name in names
        for path in (sorted((ROOT / name).rglob("*.py")) or [ROOT / name])
        if path != Path(__file__)
    ]
    assert all(path.is_file() for path in found)
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring."""
    for node in ast.walk(parse(path)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node, clean=False)):
            yield node.body[0].lineno, text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment; comments on adjacent lines are one text."""
    block: list[str] = []
    end = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                if block and token.start[0] != end + 1:
                    yield end - len(block) + 1, "\n".join(block)
                    block = []
                block.append(token.string.lstrip("# "))
                end = token.start[0]
    if block:
        yield end - len(block) + 1, "\n".join(block)


def banned(path: Path, line: int, text: str) -> list[str]:
    """Return `file:line: context` of every banned phrase in a text that begins at `line`."""
    plain = CODE.sub(lambda code: "`" + "\n" * code[0].count("\n") + "`", text)
    return [
        f"{place(path, line + plain[: found.start()].count(chr(10)))}: ..."
        + " ".join(plain[max(0, found.start() - 40) : found.end() + 20].split())
        for found in BANNED.finditer(plain)
    ]


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def report(found: list[str]) -> str:
    return "\n".join([f"{len(found)} found", *found])


def test_docstrings_begin_with_no_question_word() -> None:
    """A caption is a noun phrase; a function's docstring begins with an imperative verb."""
    found = [
        f"{place(path, line)}: {text.strip().splitlines()[0]}"
        for path in python_files(*PLACES)
        for line, text in docstrings(path)
        if QUESTION.match(text.strip())
    ]
    assert not found, report(found)


def test_docstrings_and_comments_hold_no_banned_phrase() -> None:
    found = [
        phrase
        for path in python_files(*PLACES)
        for line, text in (*docstrings(path), *comments(path))
        for phrase in banned(path, line, text)
    ]
    assert not found, report(found)


@pytest.mark.parametrize("name", GUIDES)
def test_guides_hold_no_banned_phrase(name: str) -> None:
    found = banned(ROOT / name, 1, (ROOT / name).read_text(encoding="utf-8"))
    assert not found, report(found)


@pytest.mark.parametrize("folder", ["plugin", "tests"])
def test_lines_over_100_columns_are_below_one_percent(folder: str) -> None:
    lines = [
        (place(path, number), len(line))
        for path in python_files(folder)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]
    wide = [f"{where}: {columns} columns" for where, columns in lines if columns > WIDTH]
    assert len(wide) < WIDE_SHARE * len(lines), report(wide)


def test_test_names_have_at_most_60_characters() -> None:
    found = [
        f"{place(path, node.lineno)}: {len(node.name)}: {node.name}"
        for path in python_files("tests")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > NAME_LENGTH
    ]
    assert not found, report(found)
