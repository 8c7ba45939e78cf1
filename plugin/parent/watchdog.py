"""Watchdog: detects ranks that make no progress, and gets their stacks.

A rank beats when it begins a phase and when it finishes a micro-batch, a step, a chunk of an
evaluation or a row of data. Imports, loading a model, compiling, saving and fusing are one beat
each: the timeout must be longer than the longest of them. Ranks wait for one another (all of them
for rank 0 while it saves), so silence counts only once every rank of this machine is silent. A rank
that hangs silences the others within a step.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..base.errors import Code, Problem
from ..base.files import open_plain
from ..run.folder import RunFolder
from ..run.heartbeat import heartbeat_path

ANSWER_S = 3.0  # for one rank to write its stacks
QUIET_S = 0.3  # without a new byte, after which they count as complete
POLL_S = 0.05


class Watchdog:
    """The beats of the ranks that the parent started, timed by the parent's own clock."""

    def __init__(
        self,
        folder: Path,
        ranks: Sequence[int],
        timeout_s: float,
        now: Callable[[], float] = time.monotonic,
    ):
        self._folder = folder
        self._paths = {rank: heartbeat_path(folder, rank) for rank in ranks}
        self._timeout_s, self._now = timeout_s, now
        # The beats of an earlier run are no progress.
        self._beats = {rank: _read(path) for rank, path in self._paths.items()}
        self._since = dict.fromkeys(ranks, now())
        self._phases = dict.fromkeys(ranks, "start")

    def hang(self) -> Problem | None:
        """Return a hang once every rank has been silent for the timeout, the longest one first."""
        now = self._now()
        for rank, path in self._paths.items():
            if (beat := _read(path)) != self._beats[rank]:
                self._beats[rank], self._since[rank] = beat, now
                self._phases[rank] = beat.split()[-1] if beat.split() else "start"
        if now - max(self._since.values()) <= self._timeout_s:
            return None
        silent = sorted(self._since, key=lambda rank: self._since[rank])
        got = "none from " + ", ".join(
            f"rank {rank} in phase {self._phases[rank]}" for rank in silent
        )
        fix = f"If a phase is only slow, raise hang_timeout_s.{RunFolder(self._folder).what_is_saved()}"
        got += "; stacks are in log.txt"
        return Problem("worker", f"progress within {self._timeout_s:g} s", got, fix, Code.HANG)

    def close(self) -> None:
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


def write_stacks(pids: Mapping[int, int], log: Path) -> None:
    """Ask each rank of {rank: process id} in turn for its threads' stacks, and wait for them."""
    for rank, pid in pids.items():
        with open(log, "a", encoding="utf-8", opener=open_plain) as file:
            file.write(f"--- stacks of rank {rank}\n")
        before = log.stat().st_size
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:  # it ended just now
            continue
        if _settled(log, before) == before:
            with open(log, "a", encoding="utf-8", opener=open_plain) as file:
                file.write(f"rank {rank} did not answer: it is stopped or blocked in the kernel\n")


def _settled(log: Path, before: int) -> int:
    """Return the size of `log` once it has grown and then stayed, or after ANSWER_S."""
    deadline = time.monotonic() + ANSWER_S
    size, since = before, time.monotonic()
    while (now := time.monotonic()) < deadline and (size == before or now - since < QUIET_S):
        if (new := log.stat().st_size) != size:
            size, since = new, now
        time.sleep(POLL_S)
    return size
