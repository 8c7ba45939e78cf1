"""Child process that renders templates of strangers under limits.

Run as `python -m plugin.data.templates.render_child`. A template is a program. RLIMIT_AS limits its
memory. ITIMER_PROF limits its CPU time by its default action, which kills: a Python handler would
wait until a loop in C has ended. CPU time, so that a busy machine refuses no good template.

A request of the parent is a length and a pickle of (language, source, shared values, jobs); a job
is (its values, characters of its longest text). The answer to each job is one line of JSON, [kind,
text]; the parent reads it as nothing but JSON.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import struct
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import jinja2

from .chat_language import compile_chat
from .form_language import compiled

MEMORY = 512 << 20  # bytes beyond those of the process itself and of the request
CPU_S = 2.0  # for one rendering
SHARE_S = 0.01  # for every rendering in the long run, which also ends thousands of slow ones
BYTE_S = 1e-6  # added for every byte of a request
OUT_OF_MEMORY = b'["memory", ""]'
LENGTH = struct.Struct(">Q")
TEXT, TOO_LONG, MEMORY_OUT = "text", "too long", "memory"  # other kinds are names of exceptions
_PAGE = resource.getpagesize()


@lru_cache(maxsize=64)
def _template(language: str, source: str) -> jinja2.Template:
    return compile_chat(source) if language == "chat" else compiled(source).render


def _limit_memory(size: int | None) -> None:
    """Let the process grow by `size` bytes; None restores the limit it started with."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = most
    if size is not None and (pages := Path("/proc/self/statm")).exists():
        soft = int(pages.read_text().split()[0]) * _PAGE + size
        soft = soft if most == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_AS, (soft, most))


class _Clock:
    """CPU time left to renderings: at most CPU_S for one, SHARE_S each in the long run."""

    def __init__(self) -> None:
        self._left_s = CPU_S
        self._began_s = time.process_time()

    def start(self, earned_s: float) -> None:
        """Begin a rendering and end the previous one."""
        now_s = time.process_time()
        self._left_s = min(CPU_S, max(0.0, self._left_s - (now_s - self._began_s)) + earned_s)
        self._began_s = now_s
        signal.setitimer(signal.ITIMER_PROF, self._left_s)

    def stop(self) -> None:
        """End the last rendering: waiting for a request costs nothing."""
        signal.setitimer(signal.ITIMER_PROF, 0)


def _rendered(language: str, source: str, values: dict[str, Any], longest: int) -> bytes:
    try:
        text = _template(language, source).render(values)
        answer = (TEXT, text) if len(text) <= longest else (TOO_LONG, str(longest))
        return json.dumps(answer).encode()
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:  # a template may raise anything
        return json.dumps((type(error).__name__, str(error)[:1000])).encode()


def _answer(request: bytes, clock: _Clock, out: BinaryIO) -> bool:
    """Answer a request. Returns False if the memory ran out and this process should end."""
    language, source, shared, jobs = pickle.loads(request)
    earned_s = SHARE_S + BYTE_S * len(request) / len(jobs)
    _limit_memory(MEMORY + 8 * len(request))
    answer = b""
    for values, longest in jobs:
        clock.start(earned_s)
        answer = _rendered(language, source, {**shared, **values}, longest)
        out.write(answer + b"\n")
        if answer == OUT_OF_MEMORY:
            break
    clock.stop()
    out.flush()
    _limit_memory(None)
    return answer != OUT_OF_MEMORY


def main() -> int:
    """Answer requests on stdin until it ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    clock = _Clock()
    while head := sys.stdin.buffer.read(LENGTH.size):
        if not _answer(sys.stdin.buffer.read(*LENGTH.unpack(head)), clock, sys.stdout.buffer):
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
