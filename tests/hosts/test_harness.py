"""The plugin-era harness: its own `plugin` first on the path, our folder last, `main.main()`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import ROOT, run_python

HARNESS = """\
import sys
sys.path.insert(0, {decoy!r})
{before}
sys.path.append({ours!r})
sys.argv = ["plugin_harness.py", "check", "--help"]
import main
assert "plugin" not in sys.modules or {imported}, "importing main does no work"
try:
    main.main()
except SystemExit as ended:
    assert ended.code == 0
import plugin
print("plugin is", plugin.__file__, file=sys.stderr)
"""


@pytest.fixture
def decoy(tmp_path: Path) -> Path:
    """Make the host's folder, with a harmful package `plugin`."""
    package = tmp_path / "host" / "plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("WHOSE = 'the host'\n")
    (package / "cli.py").write_text("raise SystemExit('the decoy ran')\n")
    return package.parent


def start(decoy: Path, cwd: Path, *, before: str = "") -> tuple[int, str, str]:
    code = HARNESS.format(decoy=str(decoy), ours=str(ROOT), before=before, imported=bool(before))
    done = run_python(code, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_our_package_is_used_though_another_comes_first(decoy: Path, tmp_path: Path) -> None:
    code, out, err = start(decoy, tmp_path)
    assert code == 0, err
    assert "--training_method" in out
    assert err.splitlines()[-1] == f"plugin is {ROOT / 'plugin' / '__init__.py'}"


def test_a_decoy_in_the_working_directory_does_no_harm(decoy: Path) -> None:
    code, out, err = start(decoy, decoy)
    assert code == 0, err
    assert "--training_method" in out


def test_a_decoy_imported_first_is_an_error_naming_both_files(decoy: Path, tmp_path: Path) -> None:
    code, _, err = start(decoy, tmp_path, before="import plugin")
    assert code != 0
    last = err.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(decoy / "plugin" / "__init__.py") in last
    assert str(ROOT / "plugin") in last


def test_importing_main_runs_nothing(tmp_path: Path) -> None:
    code = f"import sys; sys.path.append({str(ROOT)!r}); import main; print(sorted(m for m in sys.modules if m.startswith('plugin')))"
    done = run_python(code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
