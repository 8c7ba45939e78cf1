"""The content of stages.json: the stages of a run in order, and how far each has come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from ..base.files import write_whole
from .outcome import Result
from .record import Record, Text

STAGES_FILE = "stages.json"
State = Literal["waiting", "running", "done", "stopped", "failed"]


class StageRecord(Record):
    """One stage."""

    number: int  # from 1
    name: Text
    folder: Text  # inside the run's folder: a complete run
    state: State = "waiting"
    params: dict[str, Any] = {}  # as asked for, by public name
    result: Result | None = None  # of its run.json


class StagesFile(Record):
    """The content of stages.json."""

    stages: list[StageRecord]


def write_stages(run_dir: Path, content: StagesFile) -> None:
    text = json.dumps(content.content(), indent=2, ensure_ascii=False, default=str)
    write_whole(run_dir / STAGES_FILE, text + "\n")


def read_stages(run_dir: Path) -> StagesFile:
    """Return the content of stages.json. Raises OSError and ValueError."""
    return StagesFile.read(json.loads((run_dir / STAGES_FILE).read_text(encoding="utf-8")))


def newest_stage(run_dir: Path) -> Path | None:
    """Return the folder of the last stage with a fused model or a checkpoint.

    None where `run_dir` holds no stages, or none of them has any.
    """
    try:
        stages = read_stages(run_dir).stages
    except (OSError, ValueError, RecursionError):
        return None
    folders = [run_dir / stage.folder for stage in stages[::-1] if "/" not in stage.folder]
    return next(
        (
            folder
            for folder in folders
            if (folder / "fused").is_dir() or any(folder.glob("checkpoint-[0-9]*"))
        ),
        None,
    )
