"""Summaries of the runs below a root folder, out of their small files."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ..base.errors import first_line, one_line
from ..base.files import Version, open_plain, version
from ..run.events import ProgressFile
from ..run.lock import holder
from ..run.record import Number, Record, Text
from ..run.run_file import RunFile

DEPTH = 3  # folders below the root in which runs are looked for
MOST_FOLDERS = 20_000  # looked into: a root that is no folder of runs must not hang the page
MOST_BYTES = 1 << 22  # of a run.json
MOST_DIGITS = 18
LONGEST_TEXT = 1000  # characters of a model's name: a list holds many runs
NOT_RUNS = {"queue", "templates", "traces", "published"}
_FILES = ("run.json", "progress.json", "metrics.json")
_BEGUN = ("log.txt", "events.jsonl")  # of a run whose run.json is missing

Seen = dict[str, Version]  # by file


class RunSummary(Record):
    """One run in a list. Empty or None: not known (yet)."""

    name: Text  # its path below the root
    status: str  # running, unfinished (it ended without a result), done, stopped, failed, broken
    phase: str = ""
    method: str = ""
    model: str = ""
    data: str = ""
    step: int | None = None
    steps: int | None = None
    percent: Number | None = None
    eta_seconds: Number | None = None
    loss: Number | None = None
    eval_loss: Number | None = None
    tokens_per_s: Number | None = None
    started: str = ""  # ISO 8601, UTC
    seconds: Number | None = None
    error: str = ""  # one line


Known = tuple[Seen, RunSummary]


@dataclass
class Summaries:
    """Reader of a root's runs; a run whose files have not changed is not read again."""

    root: Path
    _known: dict[str, Known] = field(default_factory=dict[str, Any])

    def read(self) -> list[RunSummary]:
        """Return every run, the newest first."""
        found = folders_of_runs(self.root)
        self._known = {name: renewed(name, path, self._known.get(name)) for name, path in found}
        return sorted((one for _, one in self._known.values()), key=_order, reverse=True)


@cache
def summaries_of(root: Path) -> Summaries:
    """Return the one reader of a root, which every page and the API share."""
    return Summaries(root)


def renewed(name: str, path: str, before: Known | None) -> Known:
    """Return what is known of a run folder now; it is read where its files have changed."""
    seen = _stamps(path)
    if before and before[0] == seen:
        return seen, _still(before[1], path)
    return seen, summarize(name, Path(path))


def _order(run: RunSummary) -> tuple[str, str]:
    return run.started, run.name


def folders_of_runs(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the folders of runs below a root, of their stages and machines.

    Links are not followed. Paths are texts, because these lines run every two seconds.
    """
    left = MOST_FOLDERS
    pending = [("", str(root), 0)]
    while pending and left:
        name, path, depth = pending.pop()
        left -= 1
        try:
            with os.scandir(path) as entries:
                inside = {entry.name: entry for entry in entries}
        except OSError:
            continue
        is_run = depth > 0 and any(one in inside for one in ("run.json", *_BEGUN))
        if is_run:
            yield name, path
        if depth < DEPTH:
            pending += [
                (f"{name}/{one}" if name else one, entry.path, depth + 1)
                for one, entry in inside.items()
                if not one.startswith(".")
                and (one.startswith("machine-") if is_run else depth or one not in NOT_RUNS)
                and entry.is_dir(follow_symlinks=False)
            ]


def _stamps(path: str) -> Seen:
    found: Seen = {}
    for name in _FILES:
        with suppress(OSError):
            found[name] = version(f"{path}/{name}")
    return found


def _still(before: RunSummary, path: str) -> RunSummary:
    """Return an unchanged run: only its end without a result, or its start, leave no file."""
    if before.status not in ("running", "unfinished"):
        return before
    status = "running" if holder(Path(path)) else "unfinished"
    return before if status == before.status else before.model_copy(update={"status": status})


def summarize(name: str, folder: Path) -> RunSummary:
    """Return the summary of a run folder. One that cannot be read is `broken`, with the reason."""
    try:
        file = RunFile.read(small_json(folder / "run.json"))
    except FileNotFoundError:
        live = holder(folder)
        why = "" if live else "it holds no run.json"
        return RunSummary(name=name, status="running" if live else "broken", error=why)
    except (OSError, ValueError, RecursionError) as error:
        why = f"run.json: {_reason(error)}"
        return RunSummary(name=name, status="broken", error=why, started=_started(folder))
    progress, latest = _progress(folder), _latest(folder)
    params, result = file.params, file.result
    values: dict[str, Any] = {
        "method": _text(params.get("training_method")),
        "model": _text(params.get("model_name") or params.get("model_config")),
        "data": _text(params.get("dataset_name")),
        "eval_loss": latest.get("eval/loss"),
        "started": _started(folder),
    }
    if progress:
        kept = ("step", "steps", "percent", "loss", "tokens_per_s")
        values |= {one: getattr(progress, one) for one in kept}
    if result is None:
        status = "running" if holder(folder) else "unfinished"
        if progress:
            values |= {"phase": one_line(progress.phase), "eta_seconds": progress.eta_seconds}
    else:
        status = result.outcome
        ended = {"step": result.steps, "loss": result.loss, "eval_loss": result.eval_loss}
        values |= {one: value for one, value in ended.items() if value is not None}
        values["seconds"] = result.seconds
        values["error"] = str(result.error) if result.error else ""
        if result.throughput:
            values["tokens_per_s"] = result.throughput.tokens_per_s
    return RunSummary(name=name, status=status, **values)


def _text(value: object) -> str:
    return one_line(str(value or "")[:LONGEST_TEXT])


def _reason(error: BaseException) -> str:
    known = error.strerror if isinstance(error, OSError) else ""
    return one_line(known or first_line(error))


def small_json(path: Path) -> Any:
    """Return the JSON in a small file. Raises OSError, ValueError and RecursionError."""
    with open(path, encoding="utf-8", opener=open_plain) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        return json.load(file, parse_int=_whole)


def _whole(digits: str) -> int:
    """Return a whole number that a page can be sent. Raises ValueError for one above 64 bits."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _progress(folder: Path) -> ProgressFile | None:
    try:
        return ProgressFile.read(small_json(folder / "progress.json"))
    except (OSError, ValueError, RecursionError):
        return None


def _latest(folder: Path) -> dict[str, float]:
    """Return the numbers of metrics.json."""
    try:
        content = small_json(folder / "metrics.json")
    except (OSError, ValueError, RecursionError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in items if type(value) in (int, float)}


def _started(folder: Path) -> str:
    """Return the time of a run's first event, else of its run.json's last change."""
    try:
        with open(folder / "events.jsonl", "rb", opener=open_plain) as file:
            time = json.loads(file.readline(1 << 16))["time"]
            return datetime.fromisoformat(time).astimezone(UTC).isoformat(timespec="seconds")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        status = os.lstat(folder / "run.json")
    except OSError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return ""
    return datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
