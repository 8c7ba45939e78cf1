"""Every parameter is read somewhere: no setting of a user is ignored silently."""

from __future__ import annotations

import ast

from helpers.support import ROOT

from plugin.config.params import Params


def read_fields(source: str) -> set[str]:
    """Return the fields read as `params.x`, `self.params.x` or `self._params.x`."""
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
    """Return {field: the files that read it}; a check or a rule does not count as a reader."""
    door = {
        ROOT / "plugin" / name
        for name in ("config/params.py", "config/parse.py", "config/manifest.py")
    }
    files = [
        path
        for path in (ROOT / "main.py", *sorted((ROOT / "plugin").rglob("*.py")))
        if path not in door and path.parent.name != "rules"
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
    by_property = {"keep_best"}  # Params.held_best
    assert set(Params.model_fields) - set(readers()) == by_property, (
        "nobody reads these: use them, or delete them"
    )
