"""Run folders as they are compared: parameters, standing, curves, evaluation results, labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from ..base.errors import JobError, Problem, first_line, one_line
from ..config.params import SCHEMA
from ..run.events import ProgressFile
from ..run.folder import RunFolder
from ..run.lock import holder
from ..run.run_file import RunFile
from ..run.stages_file import STAGES_FILE, read_stages
from .curves import METRICS, Axis, History, read_history
from .summary import small_json

EVALUATION = "evaluation.json"  # of the command `evaluate`
_MOST_NAMED = 6  # run folders that an error lists
_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it stands now."""

    label: str
    folder: Path
    file: RunFile
    status: str  # done, stopped, failed; running; unfinished: it ended without a result
    history: History = field(default_factory=History)
    progress: ProgressFile | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()  # what could not be read, and what the run stands for

    @property
    def params(self) -> dict[str, Any]:
        """Return every parameter, the defaults of those that an older file lacks included."""
        defaults = {name: kind["default"] for name, kind in SCHEMA.items()}
        return defaults | self.file.trained_with


@dataclass(frozen=True)
class _Place:
    """A run folder to be read. `outer`: the run of stages that it stands for."""

    folder: Path
    outer: Path | None = None
    note: str = ""

    def label(self, depth: int) -> str:
        parts = self.folder.parts[-(depth + (self.outer is not None)) :]
        return one_line("/".join(part.strip("/") for part in parts))


def read_runs(names: Sequence[str]) -> list[Run]:
    """Read the runs that these folders hold.

    A run of stages stands for its newest stage; alone, for all stages that have begun. Raises
    JobError (exit 2) with a problem for every folder that holds no readable run, or is repeated.
    """
    problems: list[Problem] = []
    places: list[_Place] = []
    for name in names:
        try:
            places += _places(name, alone=len(names) == 1)
        except JobError as error:
            problems += error.problems
    folders = [place.folder for place in places]
    repeated = {folder for folder in folders if folders.count(folder) > 1}
    problems += [_problem("different runs", f"{folder} twice") for folder in sorted(repeated)]
    labels = _labels(places)
    runs: list[Run] = []
    for place, label in zip(places, labels, strict=True):
        try:
            runs.append(_read(place, label))
        except JobError as error:
            problems += error.problems
    if problems:
        raise JobError(*problems)
    return runs


def read_run(name: str) -> Run:
    """Read one run; a run of stages stands for its newest stage. Raises JobError (exit 2)."""
    (place,) = _places(name, alone=False)
    return _read(place, place.label(1))


def axis_of(runs: Sequence[Run]) -> Axis:
    """Choose the horizontal axis: tokens if a run's length was given in tokens, else steps."""
    counts = any(run.params["train_tokens"] for run in runs)
    logged = all(run.history.points("tokens") for run in runs if run.history.columns)
    return "tokens" if counts and logged else "step"


def _problem(expected: str, got: str, fix: str = "") -> Problem:
    return Problem("runs", expected, got, fix)


def _places(name: str, *, alone: bool) -> list[_Place]:
    """Return the run folders that a name stands for. Raises JobError (exit 2)."""
    path = Path(os.path.expanduser(name)).absolute()
    if not os.path.isdir(path):
        kind = "a file" if os.path.exists(path) else "missing"
        raise JobError(_problem("run folders", f"{name}, which is {kind}"))
    if os.path.exists(path / "run.json"):
        return [_Place(path)]
    if os.path.exists(path / STAGES_FILE):
        return _stages(path, alone=alone)
    raise JobError(_problem("run folders", f"{name}, which holds no run.json", _hint(path)))


def _hint(path: Path) -> str:
    """Say where a run is, near a folder that is none."""
    if os.path.exists(path.parent / "run.json"):
        return f"Its run is {path.parent}."
    try:
        inside = sorted(found.parent.name for found in path.glob("*/run.json"))
    except OSError:
        return ""
    more = ", ..." if len(inside) > _MOST_NAMED else ""
    return f"It holds runs: {', '.join(inside[:_MOST_NAMED])}{more}." if inside else ""


def _stages(path: Path, *, alone: bool) -> list[_Place]:
    """Return the stages of a run that have begun, or the newest of them."""
    try:
        stages = read_stages(path).stages
    except (OSError, ValueError, RecursionError) as error:
        got = f"{path / STAGES_FILE}: {first_line(error)}"
        raise JobError(_problem(f"a readable {STAGES_FILE}", got)) from error
    folders = [path / stage.folder for stage in stages if "/" not in stage.folder]
    begun = [folder for folder in folders if os.path.exists(folder / "run.json")]
    if not begun:
        raise JobError(_problem("runs that have begun", f"{path}, none of whose stages has"))
    if alone:
        return [_Place(folder) for folder in begun]
    others = [folder.name for folder in begun[:-1]]
    note = f"the newest stage; earlier ones: {', '.join(others)}" if others else ""
    return [_Place(begun[-1], path, note)]


def _labels(places: Sequence[_Place]) -> list[str]:
    """Return the name of each folder, with as many of its parents as make it the only one."""
    depths = [1] * len(places)
    while True:
        labels = [place.label(depth) for place, depth in zip(places, depths, strict=True)]
        deeper = [
            depth + (labels.count(label) > 1 and depth < len(place.folder.parts))
            for place, depth, label in zip(places, depths, labels, strict=True)
        ]
        if deeper == depths:
            return labels
        depths = deeper


def _read(place: _Place, label: str) -> Run:
    """Read a run folder. Raises JobError (exit 2) where its run.json cannot be read.

    Other files that cannot be read are noted.
    """
    folder = place.folder
    try:
        file = RunFolder(folder).read_run()
    except (OSError, ValueError, RecursionError) as error:
        got = f"{folder / 'run.json'}: {first_line(error)}"
        raise JobError(_problem("a readable run.json", got)) from error
    notes = [place.note] if place.note else []
    history = _or_note(lambda: read_history(folder), METRICS, notes) or History()
    if history.broken:
        notes.append(f"{METRICS}: {history.broken} lines hold no metrics and are left out")
    status = file.result.outcome if file.result else "running" if holder(folder) else "unfinished"
    run = Run(label=label, folder=folder, file=file, status=status, history=history)
    progress = None
    if file.result is None and os.path.exists(folder / "progress.json"):
        progress = _or_note(
            lambda: ProgressFile.read(small_json(folder / "progress.json")), "progress.json", notes
        )
    outer = [place.outer] if place.outer else []
    found = [path for one in (folder, *outer) if os.path.exists(path := one / EVALUATION)]
    evaluation = _or_note(lambda: _evaluation(found[0]), EVALUATION, notes) if found else None
    return replace(run, progress=progress, evaluation=evaluation or {}, notes=tuple(notes))


def _or_note(read: Callable[[], _Read], name: str, notes: list[str]) -> _Read | None:
    """Return what `read` reads; where it cannot, None and a note with the file's name."""
    try:
        return read()
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        notes.append(f"{name} cannot be read: {why}")
        return None


def _evaluation(path: Path) -> Mapping[str, Any]:
    """Return the content of an evaluation.json. Raises OSError and ValueError."""
    content = small_json(path)
    if not isinstance(content, dict) or not isinstance(
        cast("dict[str, Any]", content).get("results"), dict
    ):
        raise ValueError("no results in it")
    return cast("dict[str, Any]", content)
