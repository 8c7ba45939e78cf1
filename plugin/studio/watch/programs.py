"""Programs that pages start: checks, TensorBoard and the publication of a checkpoint.

They end with the studio, however it ends: a run's own programs are the queue's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...base.errors import JobError, Problem, one_line
from ...base.process import ROOT, end_with_parent, torch_program

Started = Callable[[Process], None]

TENSORBOARD_S = 60.0  # for its start
END_S = 3  # that a program has to end before it is killed
_BY_SIGNAL = {"check": signal.SIGINT}  # Ctrl-C ends its torch program too
_boards: dict[Path, tuple[Process, str]] = {}  # run folder -> its TensorBoard and address
_running: dict[Process, int] = {}  # and the signal that ends it


async def _start(words: Sequence[str], *, ends_by: int, one_stream: bool = False) -> Process:
    """Start a program of Python. It is ended with the studio."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT if one_stream else PIPE,
        env=torch_program(os.environ),
        start_new_session=True,  # a terminal's Ctrl-C is for the studio, which ends it
        preexec_fn=end_with_parent(ends_by),
    )
    for ended in [one for one in _running if one.returncode is not None]:
        del _running[ended]
    _running[process] = ends_by
    return process


def end_program(process: Process | None) -> None:
    """Ask a program to end, in the way that ends what it has started too."""
    if process and process.returncode is None:
        os.kill(process.pid, _running.get(process, signal.SIGKILL))


async def main_json(words: Sequence[str], started: Started | None = None) -> tuple[Any, str]:
    """Run a command of main.py with --json. Returns (the last object of its stdout or None, stderr).

    `started` gets the program, which `end_program` ends. It is ended too where the task that waits
    for it is cancelled.
    """
    ends_by = _BY_SIGNAL.get(words[0], signal.SIGKILL)
    process = await _start([str(ROOT / "main.py"), *words, "--json"], ends_by=ends_by)
    if started:
        started(process)
    try:
        out, err = await process.communicate()
    finally:
        end_program(process)
    lines = out.decode(errors="replace").splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    return found, err.decode(errors="replace")


async def checked(
    values: Mapping[str, object], *, download: bool = False, started: Started | None = None
) -> dict[str, Any]:
    """Return the object that `check --json` prints for these values.

    `started`: see main_json. Raises JobError if the program ends without an object.
    """
    with tempfile.TemporaryDirectory(prefix="studio-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        words = ["check", "--config", str(file), *(["--download"] if download else [])]
        found, stderr = await main_json(words, started)
    if not isinstance(found, dict):
        lines = stderr.strip().splitlines() or ["it ended without a word"]
        raise JobError(Problem("check", "an answer", lines[-1]))
    return cast("dict[str, Any]", found)


def publish_words(checkpoint: Path, base: str, out: Path) -> list[str]:
    """Return the words of main.py that publish a checkpoint: an adapter's is merged into `base`."""
    if (checkpoint / "adapter_config.json").exists():
        return ["fuse", "--adapter", str(checkpoint), "--model_name", base, "--out", str(out)]
    return ["fuse", "--checkpoint", str(checkpoint), "--out", str(out)]


async def tensorboard(folder: Path) -> str:
    """Return the address of a TensorBoard of a run folder, on a free port of the loopback.

    Raises JobError.
    """
    if folder in _boards and _boards[folder][0].returncode is None:
        return _boards[folder][1]
    logs = ["--logdir", str(folder / "tb"), "--host", "127.0.0.1", "--port", "0"]
    process = await _start(
        ["-m", "tensorboard.main", *logs], ends_by=signal.SIGKILL, one_stream=True
    )
    said: list[str] = []
    try:
        address = await asyncio.wait_for(_address_of(process, said), TENSORBOARD_S)
    except TimeoutError:
        address = ""
    if not address:
        end_program(process)
        got = one_line(said[-1])[:300] if said else f"nothing in {TENSORBOARD_S:.0f} s"
        fix = "Run `bash setup.sh`, or see its lines."
        raise JobError(Problem("tensorboard", "its address", got, fix))
    _boards[folder] = (process, address)
    return address


async def _address_of(process: Process, said: list[str]) -> str:
    assert process.stdout
    async for line in process.stdout:
        text = line.decode(errors="replace").strip()
        said.append(text)
        if found := re.search(r"http://(127\.0\.0\.1|localhost):\d+\S*", text):
            # The pipe must not fill up.
            _readers.add(reader := asyncio.create_task(process.stdout.read()))
            reader.add_done_callback(_readers.discard)
            return found[0]
    await process.wait()
    return ""


_readers: set[asyncio.Task[bytes]] = set()


async def end_programs() -> None:
    """End what the pages have started."""
    left = [process for process in _running if process.returncode is None]
    for process in left:
        end_program(process)
    ends = [asyncio.ensure_future(process.wait()) for process in left]
    if ends:
        await asyncio.wait(ends, timeout=END_S)
    for process in left:
        if process.returncode is None:
            process.kill()
    await asyncio.gather(*ends)
    _running.clear()
