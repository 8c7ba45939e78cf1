"""Forks of `main.py` from a process with all imports done (server.py).

A tiny run costs about a second, an answer of a trained model less.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.scenes import LONGEST_S, Scene
from helpers.support import ROOT, child_env, is_running, patience

from .inject import FAULT

ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def ranks_of(pid: int) -> list[int]:
    """Return the process ids of a parent's ranks, each its own session, in start order."""
    try:
        children = [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
        return [child for child in children if is_running(child) and os.getpgid(child) == child]
    except (OSError, ProcessLookupError):
        return []


def _kill_tree(pid: int) -> None:
    for one in (*ranks_of(pid), pid):
        os.killpg(one, signal.SIGKILL)


@dataclass
class Forked:
    """A run under way."""

    forks: Forks
    number: int
    folder: Path
    pid: int  # of the parent program

    def ranks(self) -> list[int]:
        return ranks_of(self.pid)

    def kill(self, *, parent: bool) -> None:
        """Send kill -9 to the first rank, or to parent and ranks, as when a machine goes down."""
        for pid in (self.pid, *self.ranks()) if parent else self.ranks()[:1]:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)

    def running(self, wait_s: float) -> bool:
        """Return True if the run is still alive after `wait_s` seconds."""
        return self.forks.code(self.number, wait_s) is None

    def wait(self) -> Scene:
        code = self.forks.code(self.number, patience(LONGEST_S))
        assert code is not None, f"{self.folder} still runs after {LONGEST_S} s"
        out, err = (
            self.folder.with_name(f"{self.folder.name}.{name}").read_text()
            for name in ("out", "err")
        )
        return Scene(self.folder, code, out, err)


class Forks:
    """The server and its forked runs, as a context that threads may share."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_env(ENVIRONMENT),
            cwd=ROOT,
        )
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._next = 0
        self._told = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        for number, pid in self._pids.items():
            if number not in self._codes and is_running(pid):
                _kill_tree(pid)
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._reader.join()
        self._server.stdout.close()

    def start(
        self, folder: Path, *args: object, fault: str = "", env: Mapping[str, str] | None = None
    ) -> Forked:
        """Train in `folder`, named by run_dir unless `resume` names it; output lies next to it."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = ["train", *map(str, args)]
        if "--run_dir" not in words and not any(
            Path(word).is_relative_to(folder) for word in words
        ):
            words += ["--run_dir", str(folder)]
        number = self._ask(folder, words, {FAULT: fault, **(env or {})}, ROOT)
        return Forked(self, number, folder, self._pids[number])

    def run(self, folder: Path, *args: object, fault: str = "") -> Scene:
        return self.start(folder, *args, fault=fault).wait()

    def main(self, *args: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run `main.py ARGS` to its end, as helpers.support.run_main does in a new process."""
        words = list(map(str, args))
        with tempfile.TemporaryDirectory() as name:
            place = Path(name) / "main"
            number = self._ask(place, words, {}, cwd)
            scene = Forked(self, number, place, self._pids[number]).wait()
        return subprocess.CompletedProcess(words, scene.code, scene.out, scene.err)

    def _ask(self, place: Path, words: list[str], env: Mapping[str, str], cwd: Path) -> int:
        """Have `main.py WORDS` forked, its output in PLACE.out and PLACE.err. Return its number."""
        request: dict[str, Any] = {"args": words, "env": dict(env), "cwd": str(cwd)}
        request |= {name: str(place.with_name(f"{place.name}.{name}")) for name in ("out", "err")}
        assert self._server.stdin
        with self._told:
            self._next += 1
            number = self._next
            self._server.stdin.write((json.dumps(request | {"id": number}) + "\n").encode())
            self._server.stdin.flush()
            assert self._told.wait_for(lambda: number in self._pids, patience(LONGEST_S)), (
                "the server of forks does not answer"
            )
            return number

    def code(self, number: int, wait_s: float) -> int | None:
        """Return the exit code of a run, or None when it has none after `wait_s` seconds."""
        with self._told:
            self._told.wait_for(lambda: number in self._codes, wait_s)
            return self._codes.get(number)

    def _read(self) -> None:
        assert self._server.stdout
        for line in iter(self._server.stdout.readline, b""):
            answer = json.loads(line)
            with self._told:
                if "pid" in answer:
                    self._pids[answer["id"]] = answer["pid"]
                if "code" in answer:
                    self._codes[answer["id"]] = answer["code"]
                self._told.notify_all()
