"""The lock holds the hash of every file that may be installed, and setup.sh takes no other."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from helpers.support import ROOT, make_wheel

LOCKS = sorted(ROOT.glob("requirements*.txt"))
TORCH = re.search(
    r'^TORCH="torch==(.+)"$', (ROOT / "setup.sh").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_line_of_a_lock_has_a_pin_and_hashes(lock: Path) -> None:
    lines = [
        line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; \S.*?)?( +--hash=sha256:[0-9a-f]{64})+", line), (
            line
        )


def test_the_installers_of_this_project_require_hashes() -> None:
    calls = re.findall(
        r"^\s*install .*$", (ROOT / "setup.sh").read_text(encoding="utf-8"), re.MULTILINE
    )
    calls += re.findall(r"pip install .*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(calls) == 3
    assert all("--require-hashes" in call for call in calls)


@pytest.mark.end_to_end
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_setup_with_another_digit_in_a_hash_installs_nothing(
    tmp_path: Path, installer: str
) -> None:
    """Audit 14: nothing was installed by hash.

    The real setup.sh, on a folder of two wheels, torch's a stand-in.
    """
    if installer == "uv" and not shutil.which("uv"):
        pytest.skip("uv is not here; tests/contract tries it")
    wheels, prefix = tmp_path / "wheels", tmp_path / "venv"
    wheels.mkdir()
    assert TORCH
    make_wheel(wheels, "torch", TORCH[1])
    right = hashlib.sha256(make_wheel(wheels, "harmless", "1.0").read_bytes()).hexdigest()
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    shutil.copy(ROOT / "setup.sh", tmp_path)
    venv.create(prefix, with_pip=installer == "pip", symlinks=True)
    paths = [
        prefix / "bin",
        *([Path(shutil.which("uv") or "").parent] if installer == "uv" else []),
        "/usr/bin",
        "/bin",
    ]
    env = {
        "PATH": os.pathsep.join(map(str, paths)),
        "VIRTUAL_ENV": str(prefix),
        "HOME": str(tmp_path),
    }
    env |= {
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(wheels),
    }
    site = next(prefix.glob("lib/python*/site-packages"))
    for digest, installed in ((wrong, False), (right, True)):
        lock = f"harmless==1.0 \\\n    --hash=sha256:{digest}\n"
        (tmp_path / "requirements.txt").write_text(lock, encoding="utf-8")
        done = subprocess.run(
            ["bash", "setup.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0, (
            "without the plugin's own files it ends at their imports, at the latest"
        )
        assert (site / "harmless" / "__init__.py").exists() is installed, done.stderr
        assert ("hash" in done.stderr.lower()) is not installed, done.stderr
        assert ("setup: failed, for the programs cannot be imported" in done.stderr) is installed
        assert not list(prefix.glob(".diffusion_llm_trainer-*"))
