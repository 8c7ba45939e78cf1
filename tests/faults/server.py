"""Server with all imports done: forks a full `main.py` for each line on its stdin.

Imports take many times as long as a tiny run. A child is the parent program; the ranks that it
starts are forks too, with the environment, the session and the descriptors that
`plugin.parent.supervise` gives them. A fused model is reloaded in the rank itself, not in a new
process; `check` tries its job, and a command that is a program of its own (chat, evaluate, ...) does
its work, in the child that has read the arguments. Everything else is the product's own code.

In: {"id", "args", "env", "cwd", "out", "err"}; out: {"id", "pid"} immediately and {"id", "code"} at the
end, one JSON object a line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

from helpers.support import try_out_here

import plugin.worker.__main__
from plugin import cli, programs
from plugin.assembly import verify
from plugin.parent import check, supervise
from plugin.worker import load

from . import inject

POLL_S = 0.02


class ForkedRank:
    """Stand-in for `subprocess.Popen` in plugin.parent.supervise: a fork of this process."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        start_new_session: bool,
        pass_fds: Sequence[int],
    ):
        assert start_new_session
        assert stdin == DEVNULL
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _become(None, stdout.fileno(), stderr.fileno(), pass_fds)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = list(argv[argv.index("plugin.worker") :])
            _leave(_rank)

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def _reap(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


DEVNULL = -3


def _rank() -> int:
    verify.subprocess = SimpleNamespace(run=_reload_here, PIPE=-1, DEVNULL=DEVNULL)
    inject.arm(os.environ.get(inject.FAULT, ""))
    if backend := os.environ.get(
        "TEST_COMPILE_BACKEND"
    ):  # a compiler that takes milliseconds; inductor takes half a minute
        load.compile_layers = partial(load.compile_layers, backend=backend)
    return plugin.worker.__main__.main()


def _reload_here(command: Sequence[str], **_: object) -> SimpleNamespace:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        verify.main(*command[command.index("plugin.assembly.verify") + 1 :])
    return SimpleNamespace(stdout=out.getvalue())


def _program(_: str, words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Stand in for `os.execve` in plugin.programs: run `python -P -m MODULE ARGS` in this process."""
    os.environ.clear()
    os.environ.update(env)
    name, *args = words[words.index("-m") + 1 :]
    found = importlib.import_module(name)
    program = importlib.import_module(f"{name}.__main__") if hasattr(found, "__path__") else found
    sys.exit(program.main(args))


def _become(stdin: int | None, stdout: int, stderr: int, keep: Sequence[int] = ()) -> None:
    """Set the standard streams of a new process; close all other descriptors except `keep`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                continue
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", line_buffering=True)
        for number in (1, 2)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _leave(program: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        code = program()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a full disk is part of the play
                continue
        os._exit(code)


def _start(request: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    out, err = (
        os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")
    )
    _become(None, out, err)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    supervise.subprocess = SimpleNamespace(Popen=ForkedRank, DEVNULL=DEVNULL)
    check._try_out = try_out_here
    programs.os = SimpleNamespace(environ=os.environ, execve=_program)
    args = request["args"]
    _leave(lambda: (programs.run_program if programs.is_program(args) else cli.main)(args))


def _answer(**content: object) -> None:
    os.write(1, (json.dumps(content) + "\n").encode())


def main() -> NoReturn:
    for late in (
        "peft",
        "bitsandbytes",
        "torch._dynamo",
    ):  # a worker imports them when needed
        importlib.import_module(late)
    (threads,) = (
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Threads:")
    )
    assert threads == "1", f"a fork takes one thread along and finds the locks of {threads} taken"
    _answer(ready=True)
    running: dict[int, int] = {}
    rest = b""
    while True:
        if select.select([0], [], [], POLL_S)[0]:
            data = os.read(0, 1 << 16)
            if not data:
                os._exit(0)  # the interpreter's own end frees every import, for seconds
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = _start(request)
                running[pid] = request["id"]
                _answer(id=request["id"], pid=pid)
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _answer(id=running.pop(pid), code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
