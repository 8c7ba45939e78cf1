"""`python -m plugin.data.render_child`: renders strangers' templates under limits that none escapes.

A template is a program. Its memory ends at RLIMIT_AS; its CPU time ends at ITIMER_PROF, whose
default action kills: a handler of Python's own would wait until a loop in C has ended. CPU time,
so that a busy machine refuses no good template.

A request of the parent is a length and a pickle of (language, sources, shared values, jobs), a job
being (number of its source, its values, characters of its longest text). Each job is answered by
one line of JSON, [kind, text]; none is read back as anything but JSON.
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
from .sandbox import compiled

MEMORY = 512 << 20  # bytes beyond the process's own and what the request itself takes
CPU_S = 2.0  # of one rendering
SHARE_S = 0.01  # of every rendering in the long run, so that thousands of slow ones end too
CHARACTER_S = 1e-6  # the same for every byte of a request
LENGTH = struct.Struct(">Q")
TEXT, TOO_LONG, MEMORY_OUT = "text", "too long", "memory"  # other kinds are names of exceptions
_PAGE = resource.getpagesize()


@lru_cache(maxsize=64)
def _template(language: str, source: str) -> jinja2.Template:
    return compile_chat(source) if language == "chat" else compiled(source).render


def _limit_memory(size: int | None) -> None:
    """Let the process grow by `size` bytes; None: as far as it was let when it started."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = most
    if size is not None and (pages := Path("/proc/self/statm")).exists():
        soft = int(pages.read_text().split()[0]) * _PAGE + size
        soft = soft if most == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_AS, (soft, most))


class _Clock:
    """CPU time that renderings may still take: CPU_S at once, a share each in the long run."""

    def __init__(self) -> None:
        self._left_s = CPU_S

    def __enter__(self) -> None:
        self._began_s = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self._left_s)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._left_s = max(0.001, self._left_s - (time.process_time() - self._began_s))

    def earn(self, seconds: float) -> None:
        self._left_s = min(CPU_S, self._left_s + seconds)


def _rendered(language: str, source: str, values: dict[str, Any], longest: int) -> tuple[str, str]:
    try:
        text = _template(language, source).render(values)
    except MemoryError:
        return MEMORY_OUT, ""
    except Exception as error:  # a template may raise anything
        return type(error).__name__, str(error)[:1000]
    return (TEXT, text) if len(text) <= longest else (TOO_LONG, str(longest))


def _answer(request: bytes, clock: _Clock, out: BinaryIO) -> bool:
    """Answer a request; return False when the memory ran out and this process should end."""
    language, sources, shared, jobs = pickle.loads(request)
    earned_s = SHARE_S + CHARACTER_S * len(request) / len(jobs)
    for number, values, longest in jobs:
        clock.earn(earned_s)
        _limit_memory(MEMORY + 8 * len(request))
        with clock:
            answer = _rendered(language, sources[number], {**shared, **values}, longest)
        _limit_memory(None)
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()  # the parent counts the answers to know which job was the last
        if answer[0] == MEMORY_OUT:
            return False
    return True


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    clock = _Clock()
    while head := sys.stdin.buffer.read(LENGTH.size):
        if not _answer(sys.stdin.buffer.read(*LENGTH.unpack(head)), clock, sys.stdout.buffer):
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
