"""Check of the Python environment, in a Python without the packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import MAIN, ROOT, child_env

from plugin.base import environment

HARNESS = ("--plugin_dir", "x", "--input_file", "y", "--experiment_name", "z")


@pytest.mark.parametrize("words", [("train",), ("chat", "x"), ("--version",), ("--task",), HARNESS])
def test_a_python_without_packages_says_how_to_get_in(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    command = [sys.executable, "-S", "-E", str(MAIN), *words]  # -S: without site-packages
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error[2]: environment: expected Python 3.11 or 3.12 with the packages of requirements.txt, got "
    )
    assert f"{sys.executable} without accelerate, datasets, jinja2 and " in line
    assert f"source {ROOT / '.venv' / 'bin' / 'activate'}" in line
    assert list(tmp_path.iterdir()) == []


def test_make_setup_is_named_where_it_has_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.problem(tmp_path) == ""
    monkeypatch.setattr(environment, "NEEDED", ("torch", "no_such_package"))
    line = environment.problem(tmp_path)
    assert "without no_such_package. Run `make setup`" in line
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert "make setup" not in environment.problem(tmp_path)


@pytest.mark.end_to_end
def test_old_transformers_is_named_by_every_program(tmp_path: Path) -> None:
    """Metadata of another version lies first on the path."""
    info = tmp_path / "transformers-5.17.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.17.0\n")
    programs = (
        [str(MAIN), "train"],
        ["-m", "plugin.worker", "x"],
        ["-m", "plugin.commands.chat", "x"],
        ["-m", "plugin.commands.fuse"],
        [str(ROOT / "benches" / "gpu.py"), "--rehearse"],
    )
    for program in programs:
        environment_of = {**child_env(), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        command = [sys.executable, "-P", *program]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment_of, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, ""), (program, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith(
            "error[2]: environment: expected transformers 5.23 or newer, got transformers 5.17.0 in "
        )


@pytest.mark.parametrize(
    ("found", "old"),
    [
        ("5.22.4", True),
        ("5.23.0", False),
        ("5.23.0.dev0", False),
        ("6.0", False),
        ("4.57.1", True),
        ("", False),
        ("x", False),
    ],
)
def test_version_is_compared_by_its_first_numbers(found: str, old: bool) -> None:
    assert environment.too_old(found, (5, 23)) == old


def test_a_python_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OLDEST", (99, 0))
    assert f"got Python {sys.version_info[0]}.{sys.version_info[1]}. " in environment.problem(
        tmp_path
    )
