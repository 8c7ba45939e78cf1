"""A method is one row of config/methods.py and one file of objectives/: nothing else names one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import cast

import pytest
from helpers.support import ROOT

from plugin.config.families import FAMILIES
from plugin.config.methods import DEFAULT_METHOD, METHODS, methods_of, methods_with, pipeline_tag
from plugin.config.params import Params

PLUGIN = ROOT / "plugin"
OF_METHODS = {"config/methods.py", *(f"objectives/{name}.py" for name in METHODS)}
TABLE = "objectives/__init__.py"  # imports the methods' files
# Values of other parameters that read like a method: mlm_replace is as in BERT's paper.
OF_VALUES = {"config/params.py": ["bert"]}


# Methods whose names are words of eos_policy, clean_context and attention patterns too: a source may
# spell them, and never compare a method with them.
WORDS = {"block", "causal"}


def is_of_families(name: str) -> bool:
    """Tell a file of model families, whose `model_type` may read like a method's name.

    Such a file may hold the word as a value (which parts, fields or code files a family has), and
    never compare with it.
    """
    return name == "config/families.py" or name.startswith("models/")


def is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in set(METHODS) - WORDS


def spelled(source: str) -> Iterator[str]:
    """Yield the methods that a source names in a string, or whose file it imports."""
    for node in ast.walk(ast.parse(source)):
        if is_method(node):
            yield str(cast("ast.Constant", node).value)
        if isinstance(node, ast.ImportFrom) and "models" not in (node.module or ""):
            names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            yield from names & set(METHODS)
        if isinstance(node, ast.Compare) and "method" in ast.unparse(node):
            yield from WORDS & {
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant)
            }


def compared(source: str) -> bool:
    """Tell a source that compares or matches with a method's name, alone or in a collection."""
    return any(
        is_method(inner)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare | ast.match_case)
        for inner in ast.walk(node.pattern if isinstance(node, ast.match_case) else node)
    )


def sources() -> dict[str, str]:
    return {
        path.relative_to(PLUGIN).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PLUGIN.rglob("*.py"))
    }


def test_the_reader_of_sources_sees_every_spelling() -> None:
    assert list(spelled('x = {"dream": 1}')) == ["dream"]
    assert list(spelled("from ..objectives.dream import by_context")) == ["dream"]
    assert list(spelled("from . import bert")) == ["bert"]
    assert list(spelled('a = params.training_method == "block"')) == ["block"]
    assert not list(spelled('a = params.eos_policy == "block"'))
    assert not list(spelled('"""bert and llada."""\nfrom .models.dream import DreamConfig'))
    assert compared('a = m == "dream"')
    assert compared('a = m in ("llada", "bert")')
    assert compared('match m:\n    case "llada":\n        pass')
    assert not compared('a = {"dream": m == 1}["dream"]')


def test_no_other_file_names_a_method() -> None:
    found = {
        name: methods
        for name, source in sources().items()
        if name not in OF_METHODS and not is_of_families(name)
        if (methods := sorted(spelled(source)))
    }
    assert found == {TABLE: sorted(METHODS), **OF_VALUES}


def test_files_of_families_decide_nothing_by_a_method() -> None:
    found = {name: source for name, source in sources().items() if is_of_families(name)}
    assert any(set(spelled(source)) for source in found.values()), "or it needs no exception"
    assert not [name for name, source in found.items() if compared(source)]


def test_every_method_has_a_row_a_file_and_models() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert all((PLUGIN / "objectives" / f"{name}.py").is_file() for name in METHODS)
    assert {family for method in METHODS.values() for family in method.families} == set(FAMILIES)
    assert Params().training_method == DEFAULT_METHOD


@pytest.mark.parametrize(
    ("family", "methods"),
    [("roberta", ["bert"]), ("Dream", ["dream", "causal"]), ("llada", ["llada", "causal"])],
)
def test_methods_of_a_family(family: str, methods: list[str]) -> None:
    assert methods_of(family) == methods


def test_methods_with_an_option() -> None:
    assert methods_with("loss_weight_type") == ["dream"]
    assert methods_with("seed") == []


def test_pipeline_tag_of_an_unknown_method_is_text_generation() -> None:
    tags = {name: pipeline_tag(name) for name in ("bert", "dream", "llada", "later")}
    assert tags == {"bert": "fill-mask"} | dict.fromkeys(
        ("dream", "llada", "later"), "text-generation"
    )
