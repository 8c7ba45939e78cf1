"""Parent's side of template rendering: one child process, see render_child.py.

The child starts with the first template, and again after a template that exceeded a limit.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ...base.process import child_path
from .render_child import CPU_S, LENGTH, MEMORY, MEMORY_OUT, TEXT, TOO_LONG

LIMITS = f"{CPU_S:g} s of CPU time and {MEMORY >> 20} MB of memory"
_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL")


class OverLimit(RuntimeError):
    """A template, not a row, exceeds a limit."""


@dataclass(frozen=True)
class RenderJob:
    """One text to render."""

    values: Mapping[str, Any]
    longest: int  # characters allowed in the text


@dataclass(frozen=True)
class Failed:
    """A text that was not rendered: the name of an exception and its words, or TOO_LONG."""

    kind: str
    words: str

    @property
    def too_long(self) -> bool:
        """Return whether the text exceeded its length."""
        return self.kind == TOO_LONG


class Renderer:
    """The child and the pipe to it. Threads share it; a fork gets its own child."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self,
        language: Literal["chat", "form"],
        source: str,
        jobs: Sequence[RenderJob],
        shared: Mapping[str, Any] | None = None,
    ) -> list[str | Failed]:
        """Render `jobs` in order by one template; they have the `shared` values in common.

        Raises OverLimit.
        """
        if not jobs:
            return []
        request = pickle.dumps(
            (language, source, dict(shared or {}), [(job.values, job.longest) for job in jobs])
        )
        with self._lock:
            child = self._child = self._child or _start()
            try:
                return _ask(child, request, len(jobs))
            except BaseException:  # an interrupted exchange also leaves half an answer in the pipe
                self._child = None
                _end(child)
                raise

    def close(self) -> None:
        """End the child."""
        with self._lock:
            child, self._child = self._child, None
            if child:
                _end(child)

    def forget(self) -> None:
        """Leave the child to the process that this one was forked from."""
        child, self._child, self._lock = self._child, None, threading.Lock()
        if child:
            child.returncode = 0  # only its own parent can wait for it
            for pipe in (child.stdin, child.stdout):
                cast("io.BufferedReader | io.BufferedWriter", pipe).raw.close()


def _start() -> subprocess.Popen[bytes]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "plugin.data.templates.render_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**kept, **child_path(os.environ)},
        process_group=0,  # signals of this program's group must not reach it: it ends with its pipe
    )


def _ask(child: subprocess.Popen[bytes], request: bytes, jobs: int) -> list[str | Failed]:
    assert child.stdin
    assert child.stdout
    with contextlib.suppress(BrokenPipeError):  # its end is reported below
        child.stdin.write(LENGTH.pack(len(request)) + request)
        child.stdin.flush()
    found: list[str | Failed] = []
    while len(found) < jobs:
        line = child.stdout.readline()
        if not line.endswith(b"\n"):
            raise OverLimit(_ending(child.wait()))
        kind, words = json.loads(line)
        if kind == MEMORY_OUT:
            raise OverLimit(f"more than {MEMORY >> 20} MB of memory")
        found.append(words if kind == TEXT else Failed(kind, words))
    return found


def _ending(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"more than {CPU_S:g} s of CPU time"
    ending = signal.Signals(-code).name if code < 0 else f"exit {code}"
    return f"an end of its process ({ending})"


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            with contextlib.suppress(OSError):  # unwritten data may fail to flush
                pipe.close()
    child.wait()


RENDERER = Renderer()
render = RENDERER.render
os.register_at_fork(after_in_child=RENDERER.forget)
atexit.register(RENDERER.close)
