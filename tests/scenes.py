"""Whole runs of `main.py train` as scenes: undisturbed, or broken off in one of the ways a run can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support import processes_naming, read_lines, run_main, start_main, wait_until

ENDLESS = ("--train_steps", 1_000_000, "--save_steps", 1_000_000, "--eval_strategy", "no", "--logging_steps", 1000)
LONGEST_S = 120.0  # of any scene, on a busy machine
CLOCK = ("tokens_per_s", "supervised_tokens_per_s", "time/", "mfu")


@dataclass
class Scene:
    """A run that has ended, or what is left of it."""

    folder: Path
    code: int
    out: str
    err: str
    seen: dict[str, Any] = field(default_factory=dict)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @property
    def result(self) -> dict[str, Any]:
        return self.json("run.json")["result"]

    def trace(self) -> list[dict[str, float]]:
        """Every metric of the run but those of the clock."""
        return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in read_lines(self.folder / "metrics.jsonl")]

    def losses(self) -> list[float]:
        return [line["loss"] for line in self.trace() if "loss" in line]

    def last_checkpoint(self) -> Path:
        return max(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def whole(folder: Path, *args: object) -> Scene:
    done = run_main("train", *args, "--run_dir", folder, timeout_s=LONGEST_S)
    return Scene(folder, done.returncode, done.stdout, done.stderr)


def broken_off(end: Callable[[subprocess.Popen[str], Path], None], folder: Path, *args: object) -> Scene:
    """An endless run, ended by `end` once it trains."""
    first: dict[str, Any] = {}

    def training() -> bool:
        if program.poll() is not None:
            raise AssertionError(f"the run ended by itself: {program.communicate()[1]}")
        if not (folder / "progress.json").exists():
            return False
        progress = json.loads((folder / "progress.json").read_text())
        first.update(first or progress)
        return progress["step"] >= 2

    with start_main("train", *args, *ENDLESS, "--run_dir", folder) as program:
        try:
            wait_until(training, "two steps", deadline_s=LONGEST_S)
            began = datetime.now(UTC)
            end(program, folder)
            out, err = program.communicate(timeout=LONGEST_S)
            wait_until(lambda: not processes_naming(str(folder)), "the workers to end", deadline_s=40)
            return Scene(folder, program.returncode, out, err, {"progress": first, "took": datetime.now(UTC) - began})
        finally:
            for pid in processes_naming(str(folder)):
                os.kill(pid, signal.SIGKILL)


def kill_worker(program: subprocess.Popen[str], folder: Path) -> None:
    (worker,) = [pid for pid in processes_naming(str(folder)) if pid != program.pid]
    os.kill(worker, signal.SIGKILL)


ENDS: dict[str, Callable[[subprocess.Popen[str], Path], None]] = {
    "STOP": lambda program, folder: (folder / "STOP").touch(),
    "SIGTERM": lambda program, folder: program.send_signal(signal.SIGTERM),
    "parent killed": lambda program, folder: program.kill(),
    "worker killed": kill_worker,
}
