"""Full runs of `main.py train` as scenes: undisturbed, or ended early in each possible way."""

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

from helpers.support import (
    ERROR,
    is_running,
    patience,
    processes_naming,
    read_lines,
    run_main,
    start_main,
    wait_until,
)

from plugin.run.folder import RunFolder
from plugin.run.lock import LOCK_WAIT_S

ENDLESS = (
    "--train_steps",
    1_000_000,
    "--save_steps",
    1_000_000,
    "--eval_strategy",
    "no",
    "--logging_steps",
    1000,
)
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
        """Return every metric of the run except those of the clock."""
        return [
            {k: v for k, v in line.items() if not k.startswith(CLOCK)}
            for line in read_lines(self.folder / "metrics.jsonl")
        ]

    def losses(self) -> list[float]:
        return [line["loss"] for line in self.trace() if "loss" in line]

    def last_checkpoint(self) -> Path:
        return max(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def whole(folder: Path, *args: object) -> Scene:
    done = run_main("train", *args, "--run_dir", folder, timeout_s=LONGEST_S)
    return Scene(folder, done.returncode, done.stdout, done.stderr)


def broken_off(
    end: Callable[[subprocess.Popen[str], Path], dict[str, Any] | None], folder: Path, *args: object
) -> Scene:
    """Return an endless run that `end` has ended while it trained."""
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
            seen = end(program, folder) or {}
            out, err = program.communicate(timeout=patience(LONGEST_S))
            wait_until(
                lambda: not processes_naming(str(folder)), "the workers to end", deadline_s=40
            )
            return Scene(
                folder,
                program.returncode,
                out,
                err,
                {"progress": first, "took": datetime.now(UTC) - began, **seen},
            )
        finally:
            for pid in processes_naming(str(folder)):
                os.kill(pid, signal.SIGKILL)


def kill_worker(program: subprocess.Popen[str], folder: Path) -> None:
    (worker,) = [pid for pid in processes_naming(str(folder)) if pid != program.pid]
    os.kill(worker, signal.SIGKILL)


def stop(program: subprocess.Popen[str], folder: Path) -> None:
    (folder / "STOP").touch()


def signal_once(program: subprocess.Popen[str], folder: Path) -> None:
    program.send_signal(signal.SIGTERM)


def signal_twice(program: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Signal twice after a requested save; no worker can answer the first signal in time."""
    (folder / "SAVE").touch()
    wait_until(lambda: list(folder.glob("checkpoint-*")), "the save", deadline_s=LONGEST_S)
    workers = [pid for pid in processes_naming(str(folder)) if pid != program.pid]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    program.send_signal(signal.SIGTERM)
    wait_until((folder / "STOP").exists, "the first signal to be passed on")
    program.send_signal(signal.SIGTERM)
    return {"saved": [path.name for path in folder.glob("checkpoint-*")]}


def kill_parent(program: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Kill the parent alone; a second starter asks for the folder immediately."""
    program.kill()
    program.wait()
    left = processes_naming(str(folder))
    said: list[str] = []
    with RunFolder(folder).locked(LOCK_WAIT_S, said.append):
        return {
            "left": left,
            "said": said,
            "alive under the next lock": [pid for pid in left if is_running(pid)],
        }


ENDS: dict[str, Callable[[subprocess.Popen[str], Path], dict[str, Any] | None]] = {
    "STOP": stop,
    "SIGTERM": signal_once,
    "SIGTERM twice": signal_twice,
    "parent killed": kill_parent,
    "worker killed": kill_worker,
}


def errors(scene: Scene) -> dict[str, str]:
    """Return the error lines of a run by their fields."""
    found = [(ERROR.match(line), line) for line in scene.err.splitlines()]
    return {match[2]: line for match, line in found if match}


def contents(folder: Path) -> dict[str, Any]:
    """Return every entry; a link as the path that it names."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }
