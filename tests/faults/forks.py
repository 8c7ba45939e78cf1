"""`main.py train` in a forked child of a process that has imported everything (server.py): a tiny run costs about a second."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenes import LONGEST_S, Scene
from support import ROOT, child_env, is_running

ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass
class Forked:
    """A run under way."""

    forks: Forks
    number: int
    folder: Path
    pid: int  # of the parent program

    def ranks(self) -> list[int]:
        """Process ids of the ranks that live, in the order they were started."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return []
        own = str(self.folder).encode()
        return [int(child) for child in children if own not in b"" and is_running(int(child))]

    def running(self, wait_s: float) -> bool:
        """Whether it still runs after so long."""
        return self.forks.code(self.number, wait_s) is None

    def wait(self) -> Scene:
        code = self.forks.code(self.number, LONGEST_S)
        assert code is not None, f"{self.folder} still runs after {LONGEST_S} s"
        out, err = (self.folder.with_name(f"{self.folder.name}.{name}").read_text() for name in ("out", "err"))
        return Scene(self.folder, code, out, err)


class Forks:
    """The server and the runs it forked; a context."""

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
        self._rest, self._next = b"", 0

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        for number, pid in self._pids.items():
            if number not in self._codes and is_running(pid):
                os.killpg(pid, signal.SIGKILL)
        self._server.communicate()

    def start(self, folder: Path, *args: object, env: Mapping[str, str] | None = None, new: bool = True) -> Forked:
        """Train in `folder`; its output goes beside it. `new`: the run folder is named by run_dir, not by resume."""
        self._next += 1
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = ["train", *map(str, args), *(["--run_dir", str(folder)] if new else [])]
        request: dict[str, Any] = {"id": self._next, "args": words, "env": dict(env or {})}
        request |= {name: str(folder.with_name(f"{folder.name}.{name}")) for name in ("out", "err")}
        assert self._server.stdin
        self._server.stdin.write((json.dumps(request) + "\n").encode())
        self._server.stdin.flush()
        while self._next not in self._pids:
            self._read(LONGEST_S)
        return Forked(self, self._next, folder, self._pids[self._next])

    def run(self, folder: Path, *args: object, env: Mapping[str, str] | None = None) -> Scene:
        return self.start(folder, *args, env=env).wait()

    def code(self, number: int, wait_s: float) -> int | None:
        """The exit code of a run, or None when it has none after so long."""
        deadline = time.monotonic() + wait_s
        while number not in self._codes and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        return self._codes.get(number)

    def _read(self, wait_s: float) -> None:
        assert self._server.stdout
        if not select.select([self._server.stdout], [], [], wait_s)[0]:
            return
        data = os.read(self._server.stdout.fileno(), 1 << 16)
        assert data, "the server of forks has gone"
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "pid" in answer:
                self._pids[answer["id"]] = answer["pid"]
            if "code" in answer:
                self._codes[answer["id"]] = answer["code"]
