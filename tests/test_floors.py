"""Imports down the floors only, as the sources have them, lazy imports included."""

from __future__ import annotations

import ast
import resource
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from helpers.support import ROOT, run_python

# Folder of plugin/ -> the folders that it may import. A folder on a higher floor stands lower in the
# table.
FLOORS = {
    "base": "",
    "config": "base",
    "run": "base config",
    "batch": "",
    "data": "base batch",
    "corpus": "base config data",
    "objectives": "base",
    "models": "base config run batch",
    "sampling": "base config run batch data models",
    "player": "base run",
    "inference": "base config run data models sampling player",
    "evaluation": "base config run batch data models sampling inference",
    "training": "base batch data objectives models sampling",
    "assembly": "base config run batch data objectives models sampling training",
    "worker": "base config run batch data objectives models sampling training assembly",
    "parent": "base config run data",
    "planning": "base config run",
    "comparison": "base config run",
    "queue": "base config run parent",
    "dialogue": "base run player",
    "studio": "base config run data parent comparison player queue dialogue",
    "commands": "base config run batch data corpus objectives models sampling inference training "
    "evaluation assembly planning comparison player queue studio",
    "hosts": "base config run parent data",
    "programs": "base commands",
    "cli": "base config run parent hosts programs",
}
# Parts of config and run that models and sampling may import: no parameters, and of a run only the
# facts in a model's folder.
OF_CONFIG_FOR_MODELS = {"families", "methods", "model_files", "sampler"}
OF_RUN_FOR_MODELS = {"facts"}
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "accelerate",
    "datasets",
    "peft",
    "tokenizers",
    "safetensors",
    "pyarrow",
}
WITHOUT_TORCH = (
    "base",
    "config",
    "run",
    "parent",
    "comparison",
    "player",
    "queue",
    "dialogue",
    "studio",
    "hosts",
    "programs",
    "cli",
)
MOST_FILES = 18  # in one folder


def module_files() -> dict[str, list[Path]]:
    """Return the files of each module or package directly below plugin/."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "plugin").rglob("*.py")):
        name = path.relative_to(ROOT / "plugin").parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute dotted name of everything that a file imports."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@lru_cache(maxsize=1)
def uses() -> dict[str, set[str]]:
    """Return the modules that each module below plugin/ imports from there, itself left out."""
    return {
        name: {
            word.split(".")[1]
            for path in files
            for word in imports(path)
            if word.startswith("plugin.")
        }
        - {name}
        for name, files in module_files().items()
    }


def heavy(name: str) -> set[str]:
    return {word.split(".")[0] for path in module_files()[name] for word in imports(path)} & HEAVY


def test_imports_are_read_relative_and_lazy_ones_too() -> None:
    found = uses()
    assert {"base", "config", "run", "data"} <= found["parent"]
    assert "torch" in heavy("training")
    assert {
        "plugin.config.families.FAMILIES",
        "plugin.config.model_files.is_own_file",
    } <= of_models("config")


def test_every_folder_is_in_the_table() -> None:
    assert set(module_files()) == set(FLOORS)


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_imports_only_what_the_table_allows(folder: str) -> None:
    assert uses()[folder] <= set(FLOORS[folder].split())


def test_no_folder_holds_more_than_a_screen() -> None:
    folders = {path.parent for path in (ROOT / "plugin").rglob("*.py")}
    assert max(len(list(folder.glob("*.py"))) for folder in folders) <= MOST_FILES


def test_the_table_only_leads_down() -> None:
    order = list(FLOORS)
    assert all(
        order.index(below) < order.index(folder)
        for folder, allowed in FLOORS.items()
        for below in allowed.split()
    )


def of_models(folder: str) -> set[str]:
    """Return what models and sampling import of another folder."""
    return {
        word
        for path in (*module_files()["models"], *module_files()["sampling"])
        for word in imports(path)
        if word.startswith(f"plugin.{folder}.")
    }


def test_models_know_no_parameters() -> None:
    assert {word.split(".")[2] for word in of_models("config")} <= OF_CONFIG_FOR_MODELS


def test_models_know_of_a_run_the_facts_alone() -> None:
    assert {word.split(".")[2] for word in of_models("run")} <= OF_RUN_FOR_MODELS


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_what_the_parent_needs_imports_no_torch(folder: str) -> None:
    files = [
        path for path in module_files()[folder] if path.name != "quiet.py"
    ]  # of the programs that import it
    found = {word.split(".")[0] for path in files for word in imports(path)}
    assert found & {"torch", "transformers", "accelerate", "numpy"} == set()


def test_nothing_from_a_host_is_imported_at_module_level() -> None:
    """The SDK is AGPL and takes ten seconds: only a host file may import it, lazily."""
    for name, files in module_files().items():
        for path in files:
            sdk = {
                word for word in imports(path) if word.split(".")[0] in ("lab", "transformerlab")
            }
            assert not sdk or name == "hosts"


START = """\
import sys
sys.path.insert(0, {root!r})
sys.argv = ["main.py", "check", "--help"]
import main
try:
    main.main()
except SystemExit as ended:
    assert ended.code == 0
import plugin.cli, plugin.parent.train
print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)
"""


def test_parent_starts_without_torch_in_a_second_of_cpu(tmp_path: Path) -> None:
    seconds: list[float] = []
    for _ in range(3):  # caches that other work has taken make a start longer, never shorter
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_python(START.format(root=str(ROOT), heavy=HEAVY - {"pyarrow"}), cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "[]"
        assert "--training_method" in done.stdout
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0


def test_tests_of_the_parent_import_no_torch() -> None:
    """The tests stay quick, and prove that the code under test needs no torch."""
    for folder in ("base", "config", "run", "parent"):
        for path in (ROOT / "tests" / folder).glob("test_*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8")).body
            found = {
                alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names
            }
            found |= {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}
            assert not {word.split(".")[0] for word in found} & HEAVY, path


@pytest.mark.end_to_end
def test_full_training_imports_no_peft_or_bitsandbytes() -> None:
    """Both take a third of the worker's start; transformers imports them in places."""
    program = (
        "import sys, plugin.worker.__main__\nprint({'peft', 'bitsandbytes'} & set(sys.modules))"
    )
    done = run_python(program, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr
