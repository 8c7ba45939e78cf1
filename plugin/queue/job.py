"""Jobs of a queue: what a page, a script or a terminal shows of one, and what is kept beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from ..run.outcome import Result
from ..run.record import Record, Text

EndState = Literal["done", "stopped", "failed", "cancelled"]
JobState = Literal["waiting", "running"] | EndState


class Job(Record):
    """One job."""

    name: Text  # its file's, without the ending
    state: JobState
    file: Text
    devices: Text = ""  # cpu, all, or the positions of GPUs: 0,1; empty for a file that is wrong
    run_dir: Text = ""  # empty until it is known
    place: int = 0  # of a waiting job, from 1
    added: str = ""  # UTC, as the next
    started: str = ""
    ended: str = ""
    code: int | None = None  # exit code
    error: Text = ""  # one line


class JobRecord(Record):
    """The content of a job's JSON file, which begins when the job leaves the waiting ones."""

    added: str = ""
    started: str = ""
    ended: str = ""
    devices: Text = ""
    gpus: list[Text] = []  # names of the devices that it holds: cpu, 0, MIG-...
    run_dir: Text = ""
    pid: int = Field(default=0, ge=0)  # of its train; 0 until that has been started
    stop_asked: bool = False
    state: EndState | None = None  # None until it ends
    code: int | None = None
    error: Text = ""
    result: Result | None = None  # the outcome as train reported it


def utc(moment: datetime | None = None) -> str:
    """Return a moment, or this one, as ISO text in UTC."""
    return (moment or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
