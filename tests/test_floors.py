"""Imports go down the floors only. Read from the sources, lazy imports included."""

from __future__ import annotations

import ast
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, run_python

FLOOR_0 = {
    *("params", "parse", "manifest", "job", "run_folder", "families", "launch", "summary", "model_files"),
    *(
        "child",
        "follow",
        "watchdog",
        "redact",
        "stacks",
        "digests",
        "resume",
        "task",
        "wandb_relay",
        "launched",
        "verbs",
        "network",
        "last_words",
        "environment",
        "files",
        "owned",
        "wording",
    ),
}
# quiet is what every torch program imports first, wherever it lives.
FLOOR_1 = {"quiet", "batch", "objectives", "data", "models", "sampling"}
FLOOR_2 = {
    *("loop", "step", "evals", "checkpoints", "assembly", "worker", "reporting", "sampler_watch", "stopping", "trial"),
    *("optimizers", "eight_bit", "schedules", "fuse", "run", "meters", "packing", "ahead", "disk", "rendezvous"),
    *(
        "streaming",
        "memory",
        "loading",
        "finish",
        "debug_bundle",
        "verify",
        "heaviest",
        "precision",
        "sharding",
        "memory_advice",
        "board",
        "exchange",
    ),
}
FLOOR_3 = {"hosts", "hosted", "guard", "cli", "train", "report", "chat"}  # edges: a host, a command line, a program of its own
HEAVY = {"torch", "transformers", "numpy", "accelerate", "datasets", "peft", "tokenizers", "safetensors", "pyarrow"}
PARENT = FLOOR_0 | {"hosts", "hosted", "guard", "cli", "train", "report"}


def module_files() -> dict[str, list[Path]]:
    """Module or package directly below plugin/ -> its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "plugin").rglob("*.py")):
        name = path.relative_to(ROOT / "plugin").parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything a file imports."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def uses() -> dict[str, set[str]]:
    """Module below plugin/ -> modules below plugin/ that it imports, itself left out."""
    return {
        name: {word.split(".")[1] for path in files for word in imports(path) if word.startswith("plugin.")} - {name}
        for name, files in module_files().items()
    }


def heavy(name: str) -> set[str]:
    return {word.split(".")[0] for path in module_files()[name] for word in imports(path)} & HEAVY


def test_every_module_has_a_floor() -> None:
    floors = [FLOOR_0, FLOOR_1, FLOOR_2, FLOOR_3]
    assert set(module_files()) == set().union(*floors)
    assert sum(map(len, floors)) == len(set().union(*floors))


def test_imports_are_read_relative_and_lazy_ones_too() -> None:
    found = uses()
    assert {"job", "params", "child"} <= found["launch"]
    assert {"follow", "launch", "data"} <= found["train"]
    assert "torch" in heavy("loop")


@pytest.mark.parametrize("name", sorted(FLOOR_0))
def test_floor_0_knows_neither_torch_nor_what_is_above(name: str) -> None:
    assert uses()[name] <= FLOOR_0
    assert heavy(name) == set()


@pytest.mark.parametrize("name", sorted(FLOOR_1))
def test_floor_1_knows_no_parameters_and_no_sibling(name: str) -> None:
    assert uses()[name] <= {"job", "families", "batch", "quiet", "model_files", "child", "environment", "redact"}


@pytest.mark.parametrize("name", sorted(FLOOR_2))
def test_floor_2_knows_no_host_and_no_command_line(name: str) -> None:
    assert uses()[name] <= FLOOR_0 | FLOOR_1 | FLOOR_2 - {"worker"}


@pytest.mark.parametrize("name", sorted(PARENT))
def test_the_parent_never_imports_torch(name: str) -> None:
    assert heavy(name) & {"torch", "transformers", "accelerate", "numpy"} == set()
    assert uses()[name] <= PARENT | {"data"}


def test_no_import_goes_round() -> None:
    below = uses()
    seen: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in seen:
            for other in sorted(below[name]):
                visit(other, (*path, name))
            seen.append(name)

    for name in below:
        visit(name, ())


def test_nothing_from_a_host_is_imported_at_module_level() -> None:
    """The SDK is AGPL and takes ten seconds: only a host file may import it, lazily."""
    for name, files in module_files().items():
        for path in files:
            sdk = {word for word in imports(path) if word.split(".")[0] in ("lab", "transformerlab")}
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


def test_the_parent_starts_without_torch_and_in_less_than_a_second_of_cpu(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(START.format(root=str(ROOT), heavy=HEAVY - {"pyarrow"}), cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert "--training_method" in done.stdout
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


def test_floor_0_tests_do_not_import_torch() -> None:
    """So that they stay quick, and prove that the code they test needs none."""
    for name in (
        "params",
        "parse",
        "manifest",
        "launch",
        "follow",
        "watchdog",
        "redact",
        "run_folder",
        "readers_of_parameters",
        "floors",
        "harness_start",
    ):
        tree = ast.parse((Path(__file__).parent / f"test_{name}.py").read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {word.split(".")[0] for word in names} & HEAVY, name


def test_a_worker_that_adapts_nothing_starts_without_peft_and_bitsandbytes() -> None:
    """They take a third of its start; transformers imports them in places."""
    program = "import sys, plugin.worker, plugin.worker.train\nprint({'peft', 'bitsandbytes'} & set(sys.modules))"
    done = run_python(program, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr
