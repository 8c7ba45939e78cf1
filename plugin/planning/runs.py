"""Finished run folders as points of an isoFLOP fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..base.errors import JobError, Problem, first_line
from ..run.folder import RunFolder
from ..run.run_file import RunFile
from .fit import Point

Count = Callable[[Path], int]  # config.json -> parameters without embeddings and head
_FIX = "Leave it out, or let it finish."


def run_folders(places: Sequence[Path]) -> list[Path]:
    """Return the run folders among and below these folders, sorted. Raises JobError (exit 2)."""
    problems: list[Problem] = []
    found: set[Path] = set()
    for place in places:
        here = {path.parent for path in place.rglob("run.json")} if place.is_dir() else set()
        if not here:
            got = f"{place}, which {'holds none' if place.is_dir() else 'is no folder'}"
            problems.append(Problem("fit", "run folders, or a folder of them", got))
        found |= here
    if problems:
        raise JobError(*problems)
    return sorted(found)


def read_points(folders: Sequence[Path], count: Count) -> list[Point]:
    """Read what each run trained, on how many tokens, and its last evaluation loss.

    `count` counts the parameters of a config.json. Raises JobError (exit 2) with the problem of
    every run that is unfinished, was not evaluated, or has no model's configuration.
    """
    points: list[Point] = []
    problems: list[Problem] = []
    for folder in folders:
        try:
            points.append(_point(folder, count))
        except JobError as error:
            problems += error.problems
    if problems:
        raise JobError(*problems)
    return points


def _point(folder: Path, count: Count) -> Point:
    try:
        run = RunFolder(folder).read_run()
    except (OSError, ValueError) as error:
        got = f"{folder}: {first_line(error)}"
        raise JobError(Problem("fit", "a readable run.json", got, _FIX)) from error
    result = run.result
    if result is None or result.outcome != "done":
        got = f"{folder}, which is {result.outcome if result else 'unfinished'}"
        raise JobError(Problem("fit", "runs that are done", got, _FIX))
    if result.eval_loss is None or not result.throughput:
        fix = "Train it with eval_strategy steps, or leave it out."
        raise JobError(Problem("fit", "runs with an evaluation", f"{folder}, without one", fix))
    config = next((path for path in _configurations(folder, run) if path.is_file()), None)
    if config is None:
        got = f"{folder}, without fused/, a checkpoint or the file of model_config"
        raise JobError(Problem("fit", "runs with their model's config.json", got, _FIX))
    speed = result.throughput
    return Point(
        method=run.trained_with["training_method"],
        parameters=count(config),
        tokens=float(speed.tokens_per_s * speed.training_seconds),
        loss=float(result.eval_loss),
        run=str(folder),
    )


def _configurations(folder: Path, run: RunFile) -> Iterator[Path]:
    """Yield where the configuration of a run's model may be, the surest place first."""
    yield folder / "fused" / "config.json"
    yield from (path / "config.json" for path in reversed(RunFolder(folder).checkpoints()))
    if named := run.trained_with.get("model_config"):
        yield Path(named)


def differences(folders: Sequence[Path]) -> list[str]:
    """Return a note for each setting by which losses differ, where it is not the same in all runs."""
    shared = ("dataset_name", "max_length", "tokenizer_name", "eval_share", "noise_schedule")
    values: dict[str, set[str]] = {name: set() for name in shared}
    for folder in folders:
        params = RunFolder(folder).read_run().trained_with
        for name in shared:
            values[name].add(json.dumps(params.get(name)))
    return [
        f"the runs differ in {name} ({', '.join(sorted(found))}); their losses may not compare"
        for name, found in values.items()
        if len(found) > 1
    ]
