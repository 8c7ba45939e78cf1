"""Job files: a planned run as a YAML configuration that `train --config` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import JobError, Problem, first_line
from ..base.files import write_whole

MOST_ROWS = 8  # of a micro-batch; the rest of a step is accumulated


def split_rows(rows: int) -> tuple[int, int]:
    """Return (rows of a micro-batch, accumulation) of a device's rows of a step, an exact split."""
    batch = max(size for size in range(1, min(rows, MOST_ROWS) + 1) if rows % size == 0)
    return batch, rows // batch


def write_job(
    path: Path, values: Mapping[str, Any], config: Mapping[str, Any], comments: list[str]
) -> None:
    """Write a job and, next to it, the config.json of its new model, which it names in full.

    The model's file has the job's name with `.config.json`. Raises JobError (exit 2) where neither
    may be written.
    """
    model = path.with_name(f"{path.stem}.config.json")
    job = {**values, "model_config": str(model.absolute())}
    head = "".join(f"# {line}\n" for line in comments)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(model, json.dumps(config, indent=2) + "\n")
        write_whole(path, head + yaml.safe_dump(job, sort_keys=False, allow_unicode=True))
    except OSError as error:
        got = f"{path}: {first_line(error)}"
        raise JobError(Problem("out", "a file that can be written", got)) from error
