"""setup.sh where the plugin-era host runs it: an environment that uv made, without pip, in which the host has put its own pins."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT

from .drivers import CONTRACT

pytestmark = pytest.mark.contract

# What that host installs first, without what these need in turn: it is the lock that has to bring that. torch is an empty wheel made
# here, since the host's own takes gigabytes.
PINS = ("transformers==4.57.1", "accelerate==1.3.0", "peft==0.14.0", "datasets==3.6.0", "tensorboardX==2.6.2.2", "wandb==0.23.1")
SDK = ("transformerlab==0.0.82", "aiofiles==25.1.0")
OLD_TORCH = "2.9.1"
LONGEST_S = 500.0


@dataclass(frozen=True)
class Plugin:
    """The plugin's folder in a workspace, and the environment beside it."""

    folder: Path
    uv: Path

    @property
    def prefix(self) -> Path:
        return self.folder / "venv"

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """As the host runs it: the environment active, no terminal, cwd the plugin's folder."""
        env = {**os.environ, "VIRTUAL_ENV": str(self.prefix)}
        env["PATH"] = f"{self.prefix / 'bin'}:{self.uv.parent}:/usr/local/bin:/usr/bin:/bin"
        command = [str(word) for word in words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )

    def set_up(self) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "setup.sh")

    def versions(self) -> dict[str, str]:
        lines = self.run(self.uv, "pip", "freeze").stdout.splitlines()
        return {name.lower(): version for name, _, version in (re.split(r"(==| @ )", line, maxsplit=1) for line in lines)}

    def stamps(self) -> list[Path]:
        return list(self.prefix.glob(".diffusion_llm_trainer-*"))

    def files(self, *packages: str) -> dict[str, str]:
        """Digests of what a package has installed."""
        site = next(self.prefix.glob("lib/python*/site-packages"))
        paths = [path for name in packages for path in site.glob(f"{name}/**/*") if path.is_file() and path.suffix != ".pyc"]
        return {str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def empty_wheel(folder: Path, name: str, version: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path


def copy_tree(folder: Path) -> None:
    """What the host copies, without what a working copy has besides."""
    left_out = shutil.ignore_patterns(".git", ".venv", ".contract", "runs", "benches", "tests", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_out, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    found = shutil.which("uv", path=f"{CONTRACT / 'bin'}:{os.environ['PATH']}")
    assert found, "run `make contract`, which installs uv"
    root = tmp_path_factory.mktemp("work space")
    plugin = Plugin(root / "plugins" / "diffusion_llm_trainer", Path(found).absolute())
    copy_tree(plugin.folder)
    made = plugin.run(found, "venv", "--quiet", "--python", "3.11", "venv")
    assert made.returncode == 0, made.stderr
    torch = empty_wheel(root, "torch", OLD_TORCH)
    pinned = plugin.run(found, "pip", "install", "--quiet", "--no-deps", torch, *PINS, *SDK)
    if pinned.returncode:
        pytest.skip(f"the host's own packages cannot be had here: {pinned.stderr.strip().splitlines()[-1]}")
    assert plugin.run("python", "-m", "pip", "--version").returncode != 0, "the host's environment has no pip"
    yield plugin
    shutil.rmtree(plugin.prefix)  # gigabytes


def test_a_set_up_that_cannot_succeed_changes_nothing(plugin: Plugin) -> None:
    before = plugin.versions()
    assert before["torch"].endswith(f"torch-{OLD_TORCH}-py3-none-any.whl")
    requirements = plugin.folder / "requirements.txt"
    good = requirements.read_text(encoding="utf-8")
    requirements.write_text(good.replace("accelerate==1.15.0", "accelerate==0.0.0.1"), encoding="utf-8")
    failed = plugin.set_up()
    requirements.write_text(good, encoding="utf-8")
    assert failed.returncode != 0
    assert "accelerate" in failed.stderr
    assert "setup: done" not in failed.stdout
    assert plugin.versions() == before
    assert plugin.stamps() == []


def test_the_next_one_lifts_the_hosts_pins_to_the_lock_and_leaves_its_sdk(plugin: Plugin) -> None:
    before = plugin.versions()
    sdk = plugin.files("lab", "transformerlab-*")
    assert len(sdk) > 20
    done = plugin.set_up()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "setup: done"
    after = plugin.versions()
    wanted = lock()
    assert {name: after.get(name) for name in wanted} == wanted
    assert after["torch"].split("+")[0] == "2.13.0"
    lifted = {pin.lower().split("==")[0] for pin in PINS} & set(wanted)
    assert lifted >= {"transformers", "accelerate", "peft", "datasets", "wandb"}
    assert all(after[name] != before[name] for name in lifted)
    assert after["transformerlab"] == before["transformerlab"] == "0.0.82"
    assert after["tensorboardx"] == before["tensorboardx"], "what the lock does not name stays the host's"
    assert plugin.files("lab", "transformerlab-*") == sdk


def test_again_is_nothing_to_do(plugin: Plugin) -> None:
    began = time.monotonic()
    again = plugin.set_up()
    assert (again.returncode, again.stdout, again.stderr) == (0, "setup: nothing to do\n", "")
    assert time.monotonic() - began < 2


def test_what_the_sdk_imports_can_be_imported_under_our_lock(plugin: Plugin) -> None:
    """`transformerlab.plugin` imports transformers and datasets at its top, `lab` the rest; wandb and tensorboardX are logged to."""
    (plugin.folder / "home").mkdir()
    code = "import os; os.environ['TFL_HOME_DIR'] = 'home'; import lab, transformers, datasets, accelerate, peft, wandb, tensorboardX"
    done = plugin.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_check_of_a_job_runs_in_there(plugin: Plugin, tiny_bert: Path, pairs_file: Path) -> None:
    done = plugin.run(
        "python", "main.py", "check", f"--model_name={tiny_bert}", f"--dataset_name={pairs_file}", "--max_length=64"
    )
    assert done.returncode == 0, done.stderr


def test_pins_that_come_back_are_lifted_again(plugin: Plugin) -> None:
    """A re-install may keep the environment, and puts the host's pins over the lock's."""
    back = plugin.run(plugin.uv, "pip", "install", "--quiet", "--no-deps", "accelerate==1.3.0")
    assert back.returncode == 0, back.stderr
    assert plugin.versions()["accelerate"] == "1.3.0"
    again = plugin.set_up()
    assert again.returncode == 0, again.stderr
    assert plugin.versions()["accelerate"] == lock()["accelerate"]
    assert plugin.stamps()


def test_one_that_is_cut_short_is_repeated(plugin: Plugin) -> None:
    """Killed between two packages: no stamp, so the next run looks at every one."""
    site = next(plugin.prefix.glob("lib/python*/site-packages"))
    (stamp,) = plugin.stamps()
    stamp.unlink()
    for folder in site.glob("peft*"):
        shutil.rmtree(folder)
    again = plugin.set_up()
    assert again.returncode == 0, again.stderr
    assert plugin.versions()["peft"] == lock()["peft"]
    assert plugin.run("python", "-c", "import peft").returncode == 0
