"""Small programs in place of the workers, under `run_workers`."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable

from plugin.parent.launch import LaunchPlan
from plugin.parent.supervise import Inherited, Relay, run_workers
from plugin.run.events import Event
from plugin.run.folder import RunFolder
from plugin.run.outcome import Outcome

PRELUDE = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))
def event(**content):
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "now", **content}) + "\\n")
def finished(outcome="done"):
    event(type="finished", result={"outcome": outcome, "steps": 3})
def failed(code, field="dataset_name"):
    event(type="failed", error={"field": field, "expected": "e", "got": "g", "fix": "", "code": code})
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
(folder / f"pid{rank}").write_text(str(os.getpid()))
"""


class Witness:
    """A host that records calls, and can request a stop."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Event] = []
        self.signals: Callable[[], list[int]] = list
        self.stop: Callable[[], bool] = bool
        self.stop_grace_s = math.inf

    def relay(self) -> Relay:
        return Relay(
            self.lines.append,
            self.events.append,
            lambda: self.signals(),
            lambda: self.stop(),
            self.stop_grace_s,
        )


def run(folder: RunFolder, witness: Witness, program: str, ranks: int = 1) -> Outcome:
    script = folder.path.parent / "program.py"
    script.write_text(PRELUDE + textwrap.dedent(program), encoding="utf-8")
    environments = tuple({"RANK": str(rank)} for rank in range(ranks))
    return start(folder, witness, (sys.executable, str(script), str(folder.path)), environments)


def start(
    folder: RunFolder,
    witness: Witness,
    argv: tuple[str, ...],
    ranks: tuple[dict[str, str], ...],
    hang_timeout_s: float = 60,
) -> Outcome:
    with folder.locked(0, witness.lines.append) as lock:
        return run_workers(
            LaunchPlan(argv, ranks, (), ""),
            folder,
            witness.relay(),
            Inherited(lock, None),
            hang_timeout_s,
        )


def pid(folder: RunFolder, name: str) -> int:
    return int((folder / name).read_text())
