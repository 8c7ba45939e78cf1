"""Environment that one program of this product passes to another."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from faults.forks import Forks
from helpers.support import PYTORCHJOB, ROOT, patience, start_main, wait_until

from plugin.base.process import child_path, compile_cache, inherited, of_launcher, torch_program

OTHERS = [
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
]
OTHERS += [
    "TORCHELASTIC_RUN_ID",
    "PMI_SIZE",
    "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
]
OTHERS += [
    "MV2_COMM_WORLD_SIZE",
    "MPI_LOCALRANKID",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_TORCH_DEVICE",
    "FSDP_VERSION",
]
OURS = ("TRAINER_PARENT_PID", "TRAINER_LISTEN_FD", "TRAINER_MEETING")
KEPT = {
    "HOME": "/home",
    "NCCL_DEBUG": "INFO",
    "SLURM_PROCID": "3",
    "MASTER": "x",
    "RANKED": "y",
    "HF_TOKEN": "z",
}


def test_inherited_drops_launchers_and_our_own_names() -> None:
    foreign = {**PYTORCHJOB, **dict.fromkeys(OTHERS, "1")}
    assert inherited({**foreign, **dict.fromkeys(OURS, "1"), **KEPT}) == KEPT
    assert of_launcher({**foreign, **KEPT}) == list(foreign)
    assert not {*foreign, *OURS} & torch_program({**foreign, **dict.fromkeys(OURS, "1")}).keys()


@pytest.mark.parametrize("theirs", ["/x:", ":/x", "/x::", ":"])
def test_child_path_holds_no_empty_piece(theirs: str) -> None:
    """Audit 23: a trailing colon put the current folder before the standard library."""
    pieces = child_path({"PYTHONPATH": theirs})["PYTHONPATH"].split(os.pathsep)
    assert pieces == [str(ROOT), *(["/x"] if "x" in theirs else [])]


def test_a_child_imports_nothing_of_the_current_folder(tmp_path: Path) -> None:
    """Audit 23: its json.py, yaml.py and sitecustomize.py ran."""
    for name in ("json", "yaml", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\n")
    environ = torch_program({**os.environ, "PYTHONPATH": f"{tmp_path / 'nothing'}:"})
    code = "import json, yaml; print(json.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not (tmp_path / "ran").exists()
    assert str(tmp_path) not in done.stdout


def test_compiled_code_lies_where_nobody_else_may_write(tmp_path: Path) -> None:
    """torch's default is a name in /tmp that another user can make first (beyond the audit)."""
    name, user, run = (
        "TORCHINDUCTOR_CACHE_DIR",
        {"XDG_CACHE_HOME": str(tmp_path / "caches")},
        tmp_path / "run",
    )
    assert (
        compile_cache(user, run)
        == compile_cache(user)
        == {name: str(tmp_path / "caches" / "torchinductor")}
    )
    assert compile_cache({**user, name: "/mine"}, run) == {name: "/mine"}
    nowhere = {"XDG_CACHE_HOME": "/proc/nowhere"}
    assert compile_cache(nowhere, run) == {name: str(run / "compiled")}
    assert compile_cache(nowhere) == {}


@pytest.fixture
def job(tiny_config: Path, pairs_file: Path) -> tuple[object, ...]:
    model = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--batch_size",
        2,
    )
    return (
        *model,
        "--train_device",
        "cpu",
        "--fuse_model",
        "false",
        "--eval_strategy",
        "no",
        "--train_steps",
        2,
    )


@pytest.mark.parametrize(
    "foreign", [PYTORCHJOB, {"PMI_SIZE": "4", "PMI_RANK": "0"}], ids=["PyTorchJob", "srun"]
)
def test_a_run_in_a_launchers_shell_trains_alone(
    forks: Forks, job: tuple[object, ...], tmp_path: Path, foreign: dict[str, str]
) -> None:
    """Audit 8: it waited for ranks that never came, and Ctrl-C did not end it."""
    done = forks.start(tmp_path / "run", *job, env=foreign).wait()
    assert done.code == 0, done.err
    assert f"environment: {', '.join(list(foreign)[:4])}" in done.err


@pytest.mark.end_to_end
def test_ranks_meet_where_only_their_user_may(job: tuple[object, ...], tmp_path: Path) -> None:
    """Audit 11: any user of the machine could list their store and write into it."""
    (tmp_path / "tmp").mkdir()
    two = ("--num_processes", 2, "--run_dir", tmp_path / "run")
    with start_main("train", *job, *two, env={"TMPDIR": str(tmp_path / "tmp")}) as program:
        wait_until(lambda: list((tmp_path / "tmp").glob("ranks-*/store")), "the ranks to meet")
        (folder,) = (tmp_path / "tmp").glob("ranks-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        _, err = program.communicate(timeout=patience(120))
    assert program.returncode == 0, err
    assert not list((tmp_path / "tmp").glob("ranks-*")), "it goes with the run"
