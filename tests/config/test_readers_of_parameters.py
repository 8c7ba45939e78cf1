"""Every parameter has a reader, or is refused until it has one: nothing a user sets is ignored in
silence.
"""

from __future__ import annotations

import ast
from typing import get_args

import pytest
from helpers.support import ROOT

from plugin.base.errors import JobError
from plugin.config.params import BUILT, Params
from plugin.config.parse import parse


def read_fields(source: str) -> set[str]:
    """Fields read as `params.x`, `self.params.x` or `self._params.x`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = (
                owner.id
                if isinstance(owner, ast.Name)
                else owner.attr
                if isinstance(owner, ast.Attribute)
                else ""
            )
            if name in ("params", "_params"):
                found.add(node.attr)
    return found


def readers() -> dict[str, list[str]]:
    """Field -> the files that read it.

    A check at the door is no reader: it does nothing with the value.
    """
    door = {
        ROOT / "plugin" / name
        for name in ("config/params.py", "config/parse.py", "config/manifest.py")
    }
    files = [
        path
        for path in (ROOT / "main.py", *sorted((ROOT / "plugin").rglob("*.py")))
        if path not in door
    ]
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


def test_every_parameter_has_a_reader() -> None:
    assert set(Params.model_fields) - set(readers()) == set(), (
        "nobody reads these: use them, or delete them"
    )


@pytest.mark.parametrize("name", BUILT)
def test_a_value_that_is_declared_and_not_built_is_refused_by_name(name: str) -> None:
    absent = set(get_args(Params.model_fields[name].annotation)) - set(BUILT[name])
    assert absent
    for value in absent:
        with pytest.raises(JobError) as error:
            parse({"dataset_name": "d", "model_name": "m", name: value})
        assert [problem.field for problem in error.value.problems] == [name]
