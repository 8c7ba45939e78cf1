"""Jobs of the benches: `main.py train` in a process of its own, and the machine in words."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugin.base.environment import installed
from plugin.config.params import Params
from plugin.parent.gpus import list_gpus, resolve_gpus, visible_gpus
from plugin.parent.launch import plan_launch

ROOT = Path(__file__).resolve().parent.parent
LONGEST_S = 240  # of one job


@dataclass(frozen=True)
class Ended:
    """A job's exit code, last line and run folder."""

    code: int
    line: str
    folder: Path

    def run(self) -> dict[str, Any]:
        file = self.folder / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def result(self) -> dict[str, Any]:
        return self.run().get("result") or {}


@dataclass(frozen=True)
class Bench:
    """The folder and the device of the jobs."""

    root: Path
    rehearse: bool
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def start(
        self, folder: Path, values: Mapping[str, object], limit: int = 0
    ) -> subprocess.Popen[str]:
        """Start `main.py train`; `limit`: bytes of data it may hold."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "train", *words_of(folder, values)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environ, "HF_HUB_OFFLINE": "1"},
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
            if limit
            else None,
        )

    def train(
        self,
        folder: Path,
        values: Mapping[str, object],
        limit: int = 0,
        longest_s: float = LONGEST_S,
    ) -> Ended:
        return finish(self.start(folder, values, limit), folder, longest_s)


def words_of(folder: Path, values: Mapping[str, object]) -> list[str]:
    """Return the options of `main.py train` for a job in `folder`."""
    return [
        word
        for name, value in (*values.items(), ("run_dir", folder))
        for word in (f"--{name}", str(value).lower() if value is True else str(value))
    ]


def finish(process: subprocess.Popen[str], folder: Path, longest_s: float = LONGEST_S) -> Ended:
    try:
        _, err = process.communicate(timeout=longest_s)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
    errors = [line for line in err.splitlines() if line.startswith("error[")]
    return Ended(process.returncode, (errors or err.splitlines() or [""])[-1], folder)


def evaluate(run: Path, *words: str) -> dict[str, Any]:
    """Return what `main.py evaluate` finds of a run's model. Raises SystemExit with its error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "evaluate", str(run), *words, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def first_device(device: str) -> dict[str, object]:
    """Return the parameters of a job on the first GPU, or on the CPU."""
    return {"train_device": device} | ({"gpu_ids": "0"} if device == "cuda" else {})


def worker_environment(device: str) -> dict[str, str]:
    """Return this environment with all that a parent sets for the worker of one device."""
    params = Params.model_validate(first_device(device))
    gpus = resolve_gpus(params, visible_gpus(os.environ, list_gpus)) if device == "cuda" else ()
    plan = plan_launch(params, ROOT, gpus, 0, os.environ)
    return {**os.environ, **plan.ranks[0], "HF_HUB_OFFLINE": "1"}


def device_name(rehearse: bool) -> str:
    if rehearse:
        return "rehearsal on a CPU"
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.stdout.strip().splitlines()[0] if listed.returncode == 0 else "a GPU"


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "triton", "datasets")
    return {"python": platform.python_version()} | {
        name: installed(name) or "missing" for name in names
    }
