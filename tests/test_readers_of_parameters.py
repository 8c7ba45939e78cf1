"""Every parameter has a reader, or is refused until it has one: nothing a user sets is ignored in silence."""

from __future__ import annotations

import ast

import pytest
from support import ROOT

from plugin.job import JobError
from plugin.params import Params
from plugin.parse import parse

# Declared for later issues; the issue that builds one deletes its line here and its row in params.BUILT.
PENDING = {
    "parallel": "issue 5: several devices",
}

# Another valid value of every pending field.
OTHER: dict[str, object] = {
    "parallel": "fsdp2",
}


def read_fields(source: str) -> set[str]:
    """Fields read as `params.x`, `self.params.x` or `self._params.x`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in ("params", "_params"):
                found.add(node.attr)
    return found


def readers() -> dict[str, list[str]]:
    """Field -> the files that read it. A check at the door is no reader: it does nothing with the value."""
    door = {ROOT / "plugin" / name for name in ("params.py", "parse.py", "manifest.py")}
    files = [path for path in (ROOT / "main.py", *sorted((ROOT / "plugin").rglob("*.py"))) if path not in door]
    assert len(files) > 20
    found: dict[str, list[str]] = {}
    for path in files:
        for name in read_fields(path.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def test_the_reader_of_sources_sees_what_it_should() -> None:
    source = "a = params.seed\nself._params.lora\nself.params.dtype.upper()\nparams.batch_size = 3\nother.max_length"
    assert read_fields(source) >= {"seed", "lora", "dtype"}
    assert not read_fields(source) & {"batch_size", "max_length"}


def test_every_parameter_has_a_reader_or_waits_for_its_issue() -> None:
    unread = set(Params.model_fields) - set(readers())
    assert unread - set(PENDING) == set(), "nobody reads these: use them, or delete them"


def test_a_pending_parameter_that_gained_a_reader_leaves_the_list() -> None:
    found = readers()
    assert {name: found[name] for name in PENDING if name in found} == {}
    assert set(PENDING) <= set(Params.model_fields)
    assert all(issue.startswith("issue ") for issue in PENDING.values())


@pytest.mark.parametrize("name", PENDING)
def test_a_pending_parameter_is_refused_or_said_to_do_nothing(name: str) -> None:
    values = {"dataset_name": "d", "model_name": "m"}
    field = Params.model_fields[name]
    assert OTHER[name] != field.default
    try:
        said = list(parse({**values, name: OTHER[name]}).notes)
    except JobError as error:
        said = [str(problem) for problem in error.problems]
    assert [line for line in said if line.startswith(f"{name}:")], f"{name}={OTHER[name]!r} is ignored in silence"


def test_the_lists_belong_together() -> None:
    assert set(OTHER) == set(PENDING)
