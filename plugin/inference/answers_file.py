"""A file of answers that is complete or not there; a stopped job resumes where it stood.

Answers are appended to FILE.part in their order, behind a line that says which job makes them, and
with the figures that the report needs. The finished FILE holds what readers want alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..base.errors import Code, JobError, Problem, json_line
from ..base.files import open_plain, write_whole

KEYS = ("prompt", "text", "nfe")  # of a line of the finished file


@dataclass
class Figures:
    """Figures of the answers so far, earlier sessions included."""

    answers: int = 0
    tokens: int = 0
    steps: int = 0
    nfe: int = 0
    seconds: float = 0.0
    trace: int = 0  # bytes of the trace

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a line of FILE.part."""
        self.answers += 1
        self.tokens += record["tokens"]
        self.steps += record["steps"]
        self.nfe += record["nfe"]
        self.seconds, self.trace = record["seconds"], record["trace"]


@dataclass
class AnswersFile:
    """The files of one job: FILE, FILE.json, FILE.part and, where one is asked for, a trace."""

    out: Path
    job: Mapping[str, Any]
    trace: Path | None
    figures: Figures = field(default_factory=Figures)
    _part: IO[str] | None = None
    _trace: IO[str] | None = None
    _earlier: float = 0.0  # seconds of earlier sessions

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._part, self._trace):
            if file:
                with suppress(OSError):  # a full disk, which write() has reported
                    file.close()

    def open(self, *, overwrite: bool) -> dict[str, Any] | None:
        """Begin or resume the job. Return the report of one that is complete already.

        Raises JobError (exit 2) where the files belong to another job and `overwrite` is False.
        """
        try:
            if not overwrite and (report := self._complete()) is not None:
                return report
            self._begin(overwrite)
        except OSError as error:
            raise _unwritable(self.out, error) from error
        return None

    def write(self, record: Mapping[str, Any], trace: str, seconds: float) -> None:
        """Append an answer {prompt, text, nfe, tokens, steps} and its trace.

        `seconds` is the time since this session began. Raises JobError (exit 7) on a full disk.
        """
        assert self._part
        try:
            if self._trace:
                self._trace.write(trace)
                self._trace.flush()
            kept = {**record, "seconds": self._earlier + seconds, "trace": self._trace_end()}
            self._part.write(json_line(kept) + "\n")
            self._part.flush()
        except OSError as error:
            raise _unwritable(self.out, error) from error
        self.figures.add(kept)

    def finish(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Put FILE, FILE.json and the trace in their places. Return the content of FILE.json."""
        content = {**report, **self.job}
        assert self._part
        whole = self.out.with_name(f".{self.out.name}.part")
        whole.unlink(missing_ok=True)
        try:
            with whole.open("x", encoding="utf-8") as file:
                self._part.seek(0)
                self._part.readline()
                for line in self._part:
                    record = json.loads(line)
                    file.write(json_line({key: record[key] for key in KEYS}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if self.trace and self._trace:
                self._trace.close()
                os.replace(_part_of(self.trace), self.trace)
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_whole(_report_of(self.out), text + "\n")
            os.replace(whole, self.out)
            _part_of(self.out).unlink()
        except OSError as error:
            raise _unwritable(self.out, error) from error
        return content

    def _complete(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.out):
            return None
        report = _json(_report_of(self.out))
        if not self._made(report):
            raise self._foreign("out", self.out, report)
        if self.trace and not self.trace.exists():
            fix = "Name that of the first time, or write both anew with --overwrite."
            expected, got = "the trace of the answers", f"{self.trace}, which is not there"
            raise JobError(Problem("trace", expected, got, fix))
        _part_of(self.out).unlink(missing_ok=True)  # a kill came after the last renaming
        return report

    def _made(self, found: Mapping[str, Any]) -> bool:
        """Tell whether this job made a file with these facts."""
        return all(found.get(name) == value for name, value in self.job.items())

    def _foreign(self, name: str, path: Path, made: Mapping[str, Any]) -> JobError:
        expected = "a new file, or one of the same job"
        fix = "Name another file, or replace it with --overwrite."
        return JobError(Problem(name, expected, f"{path}, {_difference(made, self.job)}", fix))

    def _begin(self, overwrite: bool) -> None:
        part = _part_of(self.out)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = overwrite or not os.path.lexists(part)
        if fresh and not overwrite and self.trace and os.path.lexists(self.trace):
            raise self._foreign("trace", self.trace, {})
        self._part = open(part, "a+", encoding="utf-8", opener=open_plain)  # noqa: SIM115
        try:
            fcntl.flock(self._part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            got = f"{part}, which another program writes"
            raise JobError(Problem("out", "a file of one program", got, "Wait for it.")) from error
        self._part.seek(0)
        first = self._part.readline()
        made = _parsed(first) if first.endswith("\n") else {}
        if not self._made(made):
            if first.endswith("\n") and not overwrite:
                raise self._foreign("out", part, made)
            self._part.truncate(0)
            self._part.write(json_line(self.job) + "\n")
            self._part.flush()
        self._resume()

    def _resume(self) -> None:
        """Count the answers that are there, and cut off a half-written one."""
        assert self._part
        size = 0
        if self.trace:
            part = _part_of(self.trace)
            if not part.exists() and self.trace.exists() and self._part.readline():
                os.replace(self.trace, part)  # a kill came between this file and the others
            self._trace = open(part, "a", encoding="utf-8", opener=open_plain)  # noqa: SIM115
            size = part.stat().st_size
        self._part.seek(0)
        self._part.readline()
        end = self._part.tell()
        while (line := self._part.readline()).endswith("\n"):
            record = _parsed(line)
            if not record or record["trace"] > size:
                break
            self.figures.add(record)
            end = self._part.tell()
        self._part.seek(end)
        self._part.truncate()
        self._earlier = self.figures.seconds
        if self._trace:
            self._trace.truncate(self.figures.trace)

    def _trace_end(self) -> int:
        return os.fstat(self._trace.fileno()).st_size if self._trace else 0


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _report_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _difference(made: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """Say in which parts the job that made a file differs from this one."""
    if not isinstance(old := made.get("settings"), dict):
        return "which is there already"
    parts = [name for name in job if name != "settings" and made.get(name) != job[name]]
    parts += [
        f"{name} ({old.get(name)}, now {value})"
        for name, value in job["settings"].items()
        if old.get(name) != value
    ]
    return f"made with another {', another '.join(parts)}" if parts else "which is not finished"


def _unwritable(path: Path, error: OSError) -> JobError:
    got = f"{path}: {error.strerror or error}"
    return JobError(Problem("out", "a file that can be written", got, code=Code.DISK))
