"""Rows of the fault table: a launcher's shell, a neighbour on the machine, a stranger's model."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from helpers.scenes import LONGEST_S
from helpers.support import PYTORCHJOB, RunsWhenLoaded, patience, start_main, wait_until
from safetensors import safe_open

from .hostile_files import HostileRow
from .stage import Stage, last_line, not_the_same

INDEX = "model.safetensors.index.json"


def hostile_others() -> list[HostileRow]:
    refused = "refused by name, exit 4; nothing is run, no folder stays"
    return [
        (
            "a PyTorchJob's RANK, WORLD_SIZE, MASTER_*",
            "load",
            "not inherited, named once; the undisturbed run",
            _launcher,
        ),
        (
            "a neighbour looks for the ranks",
            "load",
            "they meet in a folder of mode 0700, which goes with the run",
            _neighbour,
        ),
        ("an index of weights names a pickle", "new run", refused, _pickle),
        ("a config.json names a kernel to fetch", "new run", refused, _kernel),
    ]


def _launcher(stage: Stage) -> str:
    done = stage.forks.start(stage.folder("hostile launcher"), *stage.job, env=PYTORCHJOB).wait()
    if done.code or "environment: RANK, WORLD_SIZE, " not in done.err:
        return f"exit {done.code}: {last_line(done)}"
    return not_the_same(done, stage.whole)


def _neighbour(stage: Stage) -> str:
    folder = stage.folder("hostile neighbour")
    tmp = folder.parent / "tmp"
    tmp.mkdir(parents=True)
    two = ("--num_processes", 2, "--batch_size", 2, "--run_dir", folder)
    with start_main("train", *stage.job, *two, env={"TMPDIR": str(tmp)}) as program:
        try:
            wait_until(
                lambda: list(tmp.glob("ranks-*/store")), "the ranks to meet", deadline_s=LONGEST_S
            )
            modes = [stat.S_IMODE(path.stat().st_mode) for path in tmp.glob("ranks-*")]
            _, err = program.communicate(timeout=patience(LONGEST_S))
        except (AssertionError, subprocess.TimeoutExpired):
            program.kill()
            raise
    if program.returncode:
        return f"exit {program.returncode}: {err[-200:]}"
    return (
        ""
        if modes == [0o700] and not list(tmp.glob("ranks-*"))
        else f"modes {modes}, left {list(tmp.iterdir())}"
    )


def _pickle(stage: Stage) -> str:
    model, mark = _model(stage, "hostile pickle"), stage.root / "mark of a pickle"
    with safe_open(model / "model.safetensors", "np") as file:
        keys = list(file.keys())
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    (model / "evil.bin").write_bytes(pickle.dumps(RunsWhenLoaded(mark)))
    (model / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(keys, "evil.bin")}), encoding="utf-8"
    )
    return _refused(stage, model, "evil.bin") or ("the pickle ran" if mark.is_symlink() else "")


def _kernel(stage: Stage) -> str:
    model = _model(stage, "hostile kernel")
    config = model / "config.json"
    fields: Mapping[str, object] = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(
        json.dumps({**fields, "attn_implementation": "kernels-community/x"}), encoding="utf-8"
    )
    return _refused(stage, model, "attn_implementation 'kernels-community/x'")


def _model(stage: Stage, name: str) -> Path:
    return Path(shutil.copytree(stage.whole.folder / "fused", stage.folder(name).parent / "model"))


def _refused(stage: Stage, model: Path, words: str) -> str:
    folder = model.parent / "run"
    data = stage.job[stage.job.index("--dataset_name") + 1]
    small = (
        "--dataset_name",
        data,
        "--max_length",
        64,
        "--train_steps",
        2,
        "--train_device",
        "cpu",
    )
    done = stage.forks.run(folder, "--model_name", model, *small)
    if done.code != 4 or words not in done.err:
        return f"exit {done.code}: {last_line(done)}"
    return "the run folder stays" if folder.exists() else ""
