"""A full disk: foreseen before the first step, survived during a run."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ERROR, MAIN, ROOT, child_env, patience, run_python

from plugin.assembly.disk import check_room, disk_space
from plugin.base.errors import Code, JobError
from plugin.config.params import Params
from plugin.parent.train import _write_outcome
from plugin.run.folder import RunFolder
from plugin.run.outcome import Outcome
from plugin.run.run_file import RunFile
from plugin.worker.__main__ import as_problem

# Runs in its own mount namespace, with a small disk that only it and its children see. Prints the
# outcome of two runs.
DRIVER = """\
import json, os, shutil, subprocess, sys, time
from pathlib import Path
disk, kept, main, *args = sys.argv[1:]
disk = Path(disk)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], check=True)

def fill(but):
    (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - but)))

def start(folder):
    return subprocess.Popen([sys.executable, main, "train", *args, "--run_dir", folder], stderr=subprocess.PIPE, text=True)

def until(holds, program):
    end = time.monotonic() + 90
    while not holds() and program.poll() is None and time.monotonic() < end:
        time.sleep(0.02)

fill(but=1_000_000)
foreseen = start(disk / "foreseen")
said = foreseen.communicate()[1]
(disk / "ballast").unlink()

folder = disk / "run"
program = start(folder)
until(lambda: (folder / "progress.json").exists() and json.loads((folder / "progress.json").read_text())["step"], program)
(folder / "SAVE").touch()
until(lambda: list(folder.glob("checkpoint-*")), program)
fill(but=200_000)
(folder / "SAVE").touch()
err = program.communicate()[1]
shutil.copytree(folder, kept)
print(json.dumps({"foreseen": [foreseen.returncode, said], "run": [program.returncode, err]}))
"""


def can_mount() -> bool:
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        bool(shutil.which("unshare"))
        and subprocess.run(tried, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, pairs_file: Path
) -> dict[str, Any]:
    if not can_mount():
        pytest.skip("this machine lets nobody mount a small disk")
    root = tmp_path_factory.mktemp("disk")
    (root / "disk").mkdir()
    job = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--batch_size",
        4,
    )
    endless = (
        "--train_steps",
        1_000_000,
        "--save_steps",
        1_000_000,
        "--eval_strategy",
        "no",
        "--logging_steps",
        1000,
    )
    command = [
        "unshare",
        "-rm",
        sys.executable,
        "-c",
        DRIVER,
        root / "disk",
        root / "kept",
        MAIN,
        *job,
        *endless,
    ]
    done = subprocess.run(
        [*map(str, command)],
        env=child_env(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=patience(240),
        check=True,
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "folder": root / "kept"}


@pytest.mark.end_to_end
def test_train_foresees_a_full_disk_before_its_first_step(runs: dict[str, Any]) -> None:
    code, err = runs["foreseen"]
    (line,) = [line for line in err.splitlines() if ERROR.match(line)]
    assert code == 7
    assert line.startswith("error[7]: run_dir: expected ")
    assert "of free disk" in line
    assert "step 1" not in err


@pytest.mark.end_to_end
def test_full_disk_is_exit_7_and_keeps_older_checkpoints(runs: dict[str, Any]) -> None:
    code, err = runs["run"]
    (line,) = [line for line in err.splitlines() if ERROR.match(line)]
    assert code == 7, err
    assert line.startswith("error[7]: disk: expected space for the run's files")
    result = json.loads((runs["folder"] / "run.json").read_text())["result"]
    assert (result["outcome"], result["code"]) == ("failed", 7)
    (checkpoint,) = runs["folder"].glob("checkpoint-*")
    assert loads(checkpoint)
    assert not list(runs["folder"].glob(".*.part")), "what could not be finished takes no room"


def loads(checkpoint: Path) -> bool:
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_pretrained(checkpoint)
    return json.loads((checkpoint / "state.json").read_text())["step"] == int(
        checkpoint.name.split("-")[1]
    )


def test_the_room_a_run_needs_is_worked_by_hand(tmp_path: Path) -> None:
    """A run needs 3 checkpoints at a time (2 kept, 1 being written) of 4 + 8 bytes a trained
    weight, and a fused model of 4 bytes a weight.

    With an evaluation, its best checkpoints are kept in addition.
    """
    params = Params(run_dir=str(tmp_path / "not" / "there"), save_total_limit=2)

    def needed(*, evaluates: bool = False, **changes: object) -> int:
        changed = params.model_copy(update=changes)
        return disk_space(changed, 1000, 100, evaluates=evaluates).needed_bytes

    assert needed() == 3 * 12 * 100 + 4 * 1000
    assert needed(fuse_model=False) == 3 * 12 * 100
    assert needed(fuse_model=False, evaluates=True) == 4 * 12 * 100
    assert needed(fuse_model=False, evaluates=True, keep_best=5) == 8 * 12 * 100
    assert needed(fuse_model=False, evaluates=True, publish="average") == 6 * 12 * 100
    assert needed(fuse_model=False, evaluates=True, publish="last", keep_best=5) == 4 * 12 * 100
    with pytest.raises(JobError, match="free disk") as caught:
        check_room(disk_space(params, 10**18, 100, evaluates=False))
    assert caught.value.code == Code.DISK


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_a_system_says_that_there_is_no_room_is_exit_7(number: int) -> None:
    assert as_problem(OSError(number, "no room")).code == Code.DISK
    assert as_problem(OSError(errno.EIO, "broken")).code == Code.INTERNAL


LIMITED = """\
import resource, sys
sys.path.insert(0, {root!r})
import torch
from safetensors.torch import save_file
from plugin.worker.__main__ import as_problem
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_file({{"weight": torch.zeros(1 << 12)}}, "model.safetensors")
except Exception as error:
    print(type(error).__name__, int(as_problem(error).code))
"""


@pytest.mark.end_to_end
def test_a_limit_of_the_disk_is_known_when_safetensors_meets_it(tmp_path: Path) -> None:
    """The errors of safetensors are no OSErrors.

    Real files only: it renames over its target, devices included.
    """
    done = run_python(LIMITED.format(root=str(ROOT)), cwd=tmp_path)
    assert done.stdout.split() == ["SafetensorError", str(int(Code.DISK))], done.stderr


def test_outcome_is_reported_without_a_writable_run_json(tmp_path: Path) -> None:
    """Report the outcome where run.json cannot be written."""

    class Listening:
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.line = self.lines.append

    host = Listening()
    _write_outcome(RunFolder(tmp_path / "gone"), host, RunFile(params={}), Outcome("done", 0))
    assert host.lines == ["run.json could not be written: No such file or directory"]
