"""Public names of plugin/: no two top-level definitions of one name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from helpers.support import ROOT

# Names that several modules define by convention, because the same caller runs either of them.
SHARED = {"main", "pages"}


def public_definitions(path: Path) -> set[str]:
    """Return the public classes and functions that a file defines at its top level."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")}


def places_of_names(root: Path) -> dict[str, list[str]]:
    """Return every public name with the files below `root` that define it."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        for name in public_definitions(path):
            places[name].append(str(path.relative_to(root)))
    return places


def test_public_names_have_one_definition_each() -> None:
    """A name that means two things misleads, even in two folders."""
    places = places_of_names(ROOT / "plugin")
    assert "load_model" in places
    twice = [
        f"{name}: {', '.join(files)}"
        for name, files in sorted(places.items())
        if len(files) > 1 and name not in SHARED
    ]
    assert not twice, "\n".join(twice)
