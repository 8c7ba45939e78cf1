"""setup.sh in a host's environment with its own pins, made by uv without pip or by pip."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.support import ROOT, make_wheel, patience

from .drivers import CONTRACT, TlabDriver

pytestmark = pytest.mark.contract

# Packages that the host installs first, without their requirements, which the lock must bring.
# torch and packages built against it are wheels made here, since the host's own take gigabytes.
PINS = (
    "transformers==4.57.1",
    "accelerate==1.3.0",
    "peft==0.14.0",
    "datasets==3.6.0",
    "tensorboardX==2.6.2.2",
    "wandb==0.23.1",
)
SDK = ("transformerlab==0.0.82", "aiofiles==25.1.0")
OLD_TORCH = "2.9.1"
BUILT_FOR_IT = {"torchvision": "0.24.1", "torchaudio": "2.9.1"}
BREAKS = "operator torchvision::nms does not exist"
# Like the real ones: their binaries fit one release of torch.
BINARY = f"""\
from importlib import metadata
if metadata.version("torch").partition("+")[0] != "{OLD_TORCH}":
    raise RuntimeError("{BREAKS}")
"""
LONGEST_S = 500.0


@dataclass(frozen=True)
class Plugin:
    """The plugin's folder in a workspace, and its environment."""

    folder: Path
    uv: Path
    has_pip: bool
    wheels: tuple[Path, ...]  # of torch and what is built against it

    @property
    def prefix(self) -> Path:
        return self.folder / "venv"

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run setup.sh as the host does: environment active, no terminal."""
        env = {**os.environ, "VIRTUAL_ENV": str(self.prefix)}
        folders = [
            self.prefix / "bin",
            *([] if self.has_pip else [self.uv.parent]),
            "/usr/local/bin",
            "/usr/bin",
            "/bin",
        ]
        env["PATH"] = os.pathsep.join(map(str, folders))
        command = [str(word) for word in words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(LONGEST_S),
            check=False,
        )

    def set_up(self) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "setup.sh")

    def versions(self) -> dict[str, str]:
        lines = self.run(self.uv, "pip", "freeze").stdout.splitlines()
        return {
            name.lower(): version
            for name, _, version in (re.split(r"(==| @ )", line, maxsplit=1) for line in lines)
        }

    def put(self, *words: object) -> None:
        """Install the named packages by hand, without their requirements."""
        done = self.run(self.uv, "pip", "install", "--quiet", "--no-deps", *words)
        assert done.returncode == 0, done.stderr

    def site(self) -> Path:
        return next(self.prefix.glob("lib/python*/site-packages"))

    def stamps(self) -> list[Path]:
        return list(self.prefix.glob(".diffusion_llm_trainer-*"))

    def files(self, *packages: str) -> dict[str, str]:
        """Return digests of the files that a package has installed."""
        site = self.site()
        paths = [
            path
            for name in packages
            for path in site.glob(f"{name}/**/*")
            if path.is_file() and path.suffix != ".pyc"
        ]
        return {
            str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        }


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().rstrip(" \\").split("==") for line in lines if "==" in line)


def copy_tree(folder: Path) -> None:
    """Copy what the host copies, without the other files of a working copy."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".contract", "runs", "benches", "tests", "__pycache__"
    )
    shutil.copytree(ROOT, folder, ignore=left_out, dirs_exist_ok=True)


@pytest.fixture(scope="module", params=["uv", "pip"])
def plugin(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plugin]:
    found = shutil.which("uv", path=f"{CONTRACT / 'bin'}:{os.environ['PATH']}")
    assert found, "run `make contract`, which installs uv"
    root = tmp_path_factory.mktemp("work space")
    wheels = [make_wheel(root, "torch", OLD_TORCH)]
    wheels += [
        make_wheel(root, name, version, BINARY, f"torch=={OLD_TORCH}")
        for name, version in BUILT_FOR_IT.items()
    ]
    has_pip = request.param == "pip"
    plugin = Plugin(
        root / "plugins" / "diffusion_llm_trainer", Path(found).absolute(), has_pip, tuple(wheels)
    )
    copy_tree(plugin.folder)
    seeded = ["--seed"] if has_pip else []
    made = plugin.run(found, "venv", "--quiet", *seeded, "--python", "3.11", "venv")
    assert made.returncode == 0, made.stderr
    pinned = plugin.run(found, "pip", "install", "--quiet", "--no-deps", *wheels, *PINS, *SDK)
    if pinned.returncode:
        pytest.skip(
            f"the host's own packages cannot be had here: {pinned.stderr.strip().splitlines()[-1]}"
        )
    assert (plugin.run("python", "-m", "pip", "--version").returncode == 0) is has_pip
    assert (plugin.run("bash", "-c", "command -v uv").returncode == 0) is not has_pip
    yield plugin
    shutil.rmtree(plugin.prefix)  # gigabytes


def test_a_set_up_that_cannot_succeed_changes_nothing(plugin: Plugin) -> None:
    before = plugin.versions()
    assert before["torch"].endswith(f"torch-{OLD_TORCH}-py3-none-any.whl")
    assert set(BUILT_FOR_IT) <= set(before)
    assert plugin.run("python", "-c", "import torchvision, torchaudio").returncode == 0, (
        "they fit the host's torch"
    )
    requirements = plugin.folder / "requirements.txt"
    good = requirements.read_text(encoding="utf-8")
    requirements.write_text(
        good.replace("accelerate==1.15.0", "accelerate==0.0.0.1"), encoding="utf-8"
    )
    failed = plugin.set_up()
    requirements.write_text(good, encoding="utf-8")
    assert failed.returncode != 0
    assert "accelerate" in failed.stderr
    assert "setup: done" not in failed.stdout
    assert plugin.versions() == before
    assert plugin.stamps() == []


def test_the_next_one_installs_the_lock_and_leaves_the_sdk(plugin: Plugin) -> None:
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
    assert not set(BUILT_FOR_IT) & set(after), (
        "what was built for the torch that is gone breaks every import"
    )
    assert "setup: removing what was built for another torch: " in done.stdout
    lifted = {pin.lower().split("==")[0] for pin in PINS} & set(wanted)
    assert lifted >= {"transformers", "accelerate", "peft", "datasets", "wandb"}
    assert all(after[name] != before[name] for name in lifted)
    assert after["transformerlab"] == before["transformerlab"] == "0.0.82"
    assert after["tensorboardx"] == before["tensorboardx"], (
        "what the lock does not name stays the host's"
    )
    assert plugin.files("lab", "transformerlab-*") == sdk


def test_again_is_nothing_to_do(plugin: Plugin) -> None:
    began = time.monotonic()
    again = plugin.set_up()
    assert (again.returncode, again.stdout, again.stderr) == (0, "setup: nothing to do\n", "")
    assert time.monotonic() - began < 2


def test_what_the_sdk_imports_can_be_imported_under_our_lock(plugin: Plugin) -> None:
    """transformers and datasets for `transformerlab.plugin`, the others for `lab`."""
    (plugin.folder / "home").mkdir()
    code = "import os; os.environ['TFL_HOME_DIR'] = 'home'; import lab, transformers, datasets, accelerate, peft, wandb, tensorboardX"
    done = plugin.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_check_of_a_job_runs_in_there(
    plugin: Plugin, tiny_bert: Path, pairs_file: Path
) -> None:
    done = plugin.run(
        "python",
        "main.py",
        "check",
        f"--model_name={tiny_bert}",
        f"--dataset_name={pairs_file}",
        "--max_length=64",
    )
    assert done.returncode == 0, done.stderr


def test_packages_no_import_has_touched_have_bytecode(plugin: Plugin) -> None:
    site = plugin.site()
    for source in ("transformers/models/whisper/modeling_whisper.py", "torch/_inductor/ir.py"):
        assert Path(importlib.util.cache_from_source(str(site / source))).is_file(), source


def test_a_job_of_the_harness_trains_in_there(
    plugin: Plugin, tiny_bert: Path, pairs_file: Path
) -> None:
    """The host's harness runs under the environment's Python, in the copied folder."""
    driver = TlabDriver(plugin.folder.parent.parent / "host", {"toy_ds": pairs_file})
    driver.python, driver.plugin = plugin.prefix / "bin" / "python", plugin.folder
    values = {
        "model_name": tiny_bert,
        "dataset_name": "toy_ds",
        "train_device": "cpu",
        "max_length": 64,
        "train_steps": 3,
    }
    values |= {"lora": "true", "eval_strategy": "no"}
    ended = driver.start("1", {name: str(value) for name, value in values.items()}).end()
    assert ended.outcome == "done", ended.log
    assert (ended.folder / "fused" / "config.json").is_file()


def test_pins_that_come_back_are_lifted_again(plugin: Plugin) -> None:
    """A re-install may keep the environment and put the host's pins over the lock's."""
    plugin.put("accelerate==1.3.0")
    assert plugin.versions()["accelerate"] == "1.3.0"
    again = plugin.set_up()
    assert again.returncode == 0, again.stderr
    assert plugin.versions()["accelerate"] == lock()["accelerate"]
    assert plugin.stamps()


def test_what_misfits_torch_alone_is_removed_again(plugin: Plugin) -> None:
    plugin.put(*plugin.wheels[1:])
    again = plugin.set_up()
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "setup: done"
    assert not set(BUILT_FOR_IT) & set(plugin.versions())


def test_what_breaks_the_imports_fails_setup_in_one_line(plugin: Plugin) -> None:
    """A package that does not name the torch it was built for."""
    plugin.put(make_wheel(plugin.folder.parent, "torchvision", "0.1", BINARY))
    for stamp in plugin.stamps():
        stamp.unlink()
    failed = plugin.set_up()
    plugin.run(plugin.uv, "pip", "uninstall", "--quiet", "torchvision")
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith(
        "setup: failed, for the programs cannot be imported: RuntimeError: " + BREAKS
    )
    assert plugin.stamps() == [], "the next run does not take it for whole"
    assert plugin.set_up().returncode == 0


def test_one_that_is_cut_short_is_repeated(plugin: Plugin) -> None:
    """Killed between two packages it leaves no stamp, so the next run checks all of them."""
    site = plugin.site()
    (stamp,) = plugin.stamps()
    stamp.unlink()
    for folder in site.glob("peft*"):
        shutil.rmtree(folder)
    again = plugin.set_up()
    assert again.returncode == 0, again.stderr
    assert plugin.versions()["peft"] == lock()["peft"]
    assert plugin.run("python", "-c", "import peft").returncode == 0
