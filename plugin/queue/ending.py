"""Ends of jobs: how one has ended, from what its train printed or left behind."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from ..base.errors import Problem, one_line
from ..base.redact import redact
from ..run.folder import RunFolder
from ..run.outcome import Result
from .job import JobRecord, utc
from .shelves import Shelves

MOST_ERROR = 500  # characters of a job's error


def ended(shelves: Shelves, name: str, record: JobRecord, code: int | None) -> JobRecord:
    """Return the record of a job whose train has ended; `code` is its exit code, if known."""
    printed = _printed(shelves, name)
    result = _result(printed) or _written(record)
    if printed:
        record = record.model_copy(update={"run_dir": str(printed.get("run_dir") or "")})
    update: dict[str, Any] = {"ended": utc(), "result": result}
    if result is None:
        update |= {"code": code if code is None or code >= 0 else 128 - code}
        update |= {"state": "cancelled" if record.stop_asked else "failed"}
        update |= {"error": "" if record.stop_asked else _death(shelves, name, code)}
    else:
        error = error_line(result.error) if result.error else ""
        update |= {"state": result.outcome, "code": result.code, "error": error}
    return record.model_copy(update=update)


def refused(record: JobRecord, *problems: Problem) -> JobRecord:
    """Return the record of a job that was not started."""
    update = {"ended": utc(), "state": "failed", "code": int(problems[0].code)}
    return record.model_copy(update=update | {"error": error_line(*problems)})


def error_line(*problems: Problem) -> str:
    """Return problems on one line of a table's length."""
    text = one_line(redact(" ".join(map(str, problems))))
    return text if len(text) <= MOST_ERROR else f"{text[:MOST_ERROR]}..."


def has_reported(shelves: Shelves, name: str) -> bool:
    return _printed(shelves, name) is not None


def never_began(shelves: Shelves, name: str, record: JobRecord | None) -> bool:
    """Tell a job whose worker was killed between its move to `running` and its start."""
    if record and (record.pid or record.state or record.stop_asked):
        return False
    return not any(shelves.text_or_none(name, ending) for ending in (".out", ".log"))


def _printed(shelves: Shelves, name: str) -> dict[str, Any] | None:
    """Return the object that train has printed last; None if it did not come to that."""
    for line in reversed(shelves.text_or_none(name, ".out").splitlines()):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "outcome" in found:
            return cast("dict[str, Any]", found)
    return None


def _result(printed: dict[str, Any] | None) -> Result | None:
    try:
        return Result.read(printed) if printed else None
    except ValueError:
        return None


def _written(record: JobRecord) -> Result | None:
    """Return the result in the job's run.json; None where that is of an earlier run there."""
    if not record.run_dir:
        return None
    folder = RunFolder(Path(record.run_dir))
    try:
        began = datetime.fromisoformat(record.started).timestamp()
        return folder.read_run().result if (folder / "run.json").stat().st_mtime >= began else None
    except (OSError, ValueError, RecursionError):
        return None


def _death(shelves: Shelves, name: str, code: int | None) -> str:
    """Describe the death of a train that has reported nothing."""
    how = "it died"
    if code is not None:
        how = f"it exited {code}" if code >= 0 else f"it was ended by {_signal_name(-code)}"
    lines = shelves.text_or_none(name, ".log").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    problem = Problem("train", "a run to its end", f"none: {how}{f': {last}' if last else ''}")
    return error_line(problem)


def _signal_name(number: int) -> str:
    known = {one.value: one.name for one in signal.Signals}  # real-time signals have no names
    return known.get(number, f"signal {number}")
