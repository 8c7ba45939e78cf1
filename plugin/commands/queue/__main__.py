"""Program of `main.py queue`. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...base.errors import JobError, guarded, json_line, one_line
from ...base.files import open_plain
from ...base.redact import guard_streams
from ...queue.folder import Queue
from ...queue.job import Job
from .arguments import QueueRequest, queue_options

COLUMNS = ("place", "job", "state", "devices", "run or error")


def main(argv: Sequence[str]) -> int:
    guard_streams()
    return guarded(lambda: _run(queue_options(argv)))


def _run(request: QueueRequest) -> int:
    queue = Queue(request.root)
    if request.action == "list":
        _list(queue, as_json=request.json)
    elif request.action == "log":
        path = queue.log(request.name)
        print(json_line({"path": str(path)})) if request.json else _print_log(path)
    elif request.action == "clear":
        count = queue.clear()
        _say(request, {"cleared": count}, f"forgotten: {count}")
    elif request.action == "start":
        queue.start_worker()
        _say(request, {"worker": True}, "the worker runs until no job is left")
    else:
        job, text = _change(queue, request)
        _say(request, job.model_dump(), text)
    return 0


def _change(queue: Queue, request: QueueRequest) -> tuple[Job, str]:
    """Add, cancel or move a job, and return it with a line on what has become of it."""
    if request.action == "add":
        job = queue.add(request.values, request.name, typed=request.typed, beside=request.beside)
        return job, f"added        {job.name}, place {job.place}"
    if request.action == "move":
        job = queue.move(request.name, request.place)
        return job, f"moved        {job.name}, place {job.place}"
    job = queue.cancel(request.name)
    text = "asked to stop and save" if job.state == "running" else "cancelled"
    return job, f"{text}: {job.name}"


def _say(request: QueueRequest, value: dict[str, Any], text: str) -> None:
    print(json_line(value) if request.json else one_line(text))


def _list(queue: Queue, *, as_json: bool) -> None:
    jobs, worker = queue.jobs(), False
    with suppress(JobError):  # somebody else's queue can be read
        worker = queue.has_worker()
    if as_json:
        print(json_line({"jobs": [job.model_dump() for job in jobs], "worker": worker}))
        return
    rows = [_row(job) for job in jobs]
    if sys.stdout.isatty():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in COLUMNS:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        Console(highlight=False, markup=False).print(table)
    else:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for row in (COLUMNS, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())
    if not worker and any(job.state in ("waiting", "running") for job in jobs):
        print("no worker runs; start one: main.py queue start", file=sys.stderr)


def _row(job: Job) -> tuple[str, ...]:
    place = str(job.place) if job.place else ""
    cells = (place, job.name, job.state, job.devices, job.error or job.run_dir)
    return tuple(map(one_line, cells))


def _print_log(path: Path) -> None:
    with open(path, encoding="utf-8", errors="replace", opener=open_plain) as file:
        for line in file:
            print(one_line(line.rstrip("\r\n")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
