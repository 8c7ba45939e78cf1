"""Process of one model's chat: `main.py chat MODEL --json --denoising`, a line each way.

It ends with its input, so that it outlives no studio, however that ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..base.errors import JobError, Problem, json_line, one_line
from ..base.process import ROOT, child_path, end_with_parent, inherited
from ..player.records import DenoisingRecord
from ..run.record import NotARecord, Number, Record, Text

LONGEST_LINE = 2**26  # bytes; a long answer's steps take a few of them
STDERR_KEPT = 8000  # bytes
END_S = 2  # seconds that an ended process has to go
_LINES_SHOWN = 3


class ChatReady(Record):
    """The first line of a process: its model is loaded."""

    ready: Text
    settings: dict[str, Any]
    remark: Text = ""


class ChatCanvas(Record):
    """An answer while it is denoised."""

    step: int
    canvas: Text


class ChatAnswer(Record):
    """A complete answer."""

    prompt: Text
    text: Text
    steps: int
    nfe: int
    seconds: Number
    tokens_per_forward: Number
    trace: list[DenoisingRecord] = []

    @property
    def remark(self) -> str:
        """Return the figures that stand below the answer."""
        return (
            f"{self.steps} steps, {self.nfe} forwards (NFE), {self.seconds:.1f} s, "
            f"tokens a forward: {self.tokens_per_forward:g}"
        )


class ChatNote(Record):
    """The effect of a command, and the settings after it."""

    note: Text
    settings: dict[str, Any] = {}


class ChatRefusal(Record):
    """The problems of a line that could not be answered."""

    problems: list[Problem]


Reply = ChatReady | ChatCanvas | ChatAnswer | ChatNote | ChatRefusal
_KINDS: dict[str, type[Reply]] = {  # by the key that only its lines have
    "ready": ChatReady,
    "canvas": ChatCanvas,
    "note": ChatNote,
    "problems": ChatRefusal,
    "prompt": ChatAnswer,
}


def read_reply(line: bytes) -> Reply:
    """Return the value of a line. Raises NotARecord for any other line."""
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NotARecord(f"no JSON: {line[:80]!r}") from error
    if isinstance(content, dict):
        for key, kind in _KINDS.items():
            if key in content:
                return kind.read(content)
    raise NotARecord(f"no reply: {line[:80]!r}")


def chat_words(model: str) -> list[str]:
    """Return the command of a model's chat; a model's name may begin with a dash."""
    main = str(ROOT / "main.py")
    return [sys.executable, main, "chat", "--json", "--denoising", "--", model]


class ChatProcess:
    """A process that answers one line at a time."""

    def __init__(self, process: asyncio.subprocess.Process):
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._printed = b""  # the last of its stderr
        self._reading = asyncio.create_task(self._read_stderr(process.stderr))
        self._asking = asyncio.Lock()

    @classmethod
    async def start(cls, model: str) -> ChatProcess:
        """Start the process of a model; `ready` waits until it has loaded it.

        Ctrl-C in the studio's terminal does not reach it: the studio ends it.
        """
        process = await asyncio.create_subprocess_exec(
            *chat_words(model),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            env=inherited(os.environ) | child_path(os.environ),
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGKILL),  # it reads no input while it loads a model
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> ChatReady:
        """Wait until the model is loaded. Raises JobError when the process ended before."""
        async with self._asking:
            reply = await self._next()
        return reply if isinstance(reply, ChatReady) else await self._died("another first line")

    async def ask(
        self, kind: str, text: str, show: Callable[[ChatCanvas], None] | None = None
    ) -> ChatAnswer | ChatNote | ChatRefusal:
        """Ask a `prompt`, an `infill` or a `command`; `show` gets the answer as it is denoised.

        Raises JobError when the process ended, with its last lines.
        """
        async with self._asking:
            with suppress(ConnectionError):  # its end is found below
                self._stdin.write(f"{json_line({kind: text})}\n".encode())
                await self._stdin.drain()
            while isinstance(reply := await self._next(), ChatCanvas):
                if show:
                    show(reply)
        return await self._died("a second start") if isinstance(reply, ChatReady) else reply

    def interrupt(self) -> None:
        """Drop the answer that is being denoised, if there is one."""
        self._signal(signal.SIGINT)

    async def end(self) -> None:
        """End the process, whatever it does."""
        await self._kill()
        if not self._asking.locked():  # else its reader reads on
            await self._drain()

    async def _kill(self) -> None:
        self._stdin.close()
        if not self._stdout.at_eof():
            self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), END_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    async def _drain(self) -> None:
        """Read what is left; a process that this one started may hold the other ends."""
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(self._stdout.read(), self._reading), END_S)

    def _signal(self, number: int) -> None:
        # Popen's own would take the exit code away from asyncio, which then reports 255.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _next(self) -> Reply:
        try:
            line = await self._stdout.readline()
        except ValueError:
            return await self._died(f"a line of more than {LONGEST_LINE >> 20} MiB")
        if not line.endswith(b"\n"):
            return await self._died("")
        try:
            return read_reply(line)
        except NotARecord as error:
            return await self._died(str(error))

    async def _died(self, why: str) -> Any:
        """End the process and raise JobError with its last lines."""
        await self._kill()
        await self._drain()
        code = self._process.returncode
        lines = self._printed.decode(errors="replace").splitlines()[-_LINES_SHOWN:]
        got = why or f"an end with code {code}"
        said = one_line(" ⏎ ".join(filter(None, lines)))
        raise JobError(Problem("chat", "a process that answers", got, said))

    async def _read_stderr(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(STDERR_KEPT):
            self._printed = (self._printed + chunk)[-STDERR_KEPT:]
