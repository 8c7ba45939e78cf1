"""The content of evaluation.json: the results of `main.py evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..base.files import open_plain, write_whole
from .folder import to_json
from .record import Number, Record, Text

EVALUATION_FILE = "evaluation.json"
EVALUATION_FOLDER = "evaluation"  # what was answered, and a scorer's own files
REQUESTS_FILE = "requests.jsonl"  # in it
NORMAL_95 = 1.96  # standard errors of a 95 % half-width


class EvaluatedFigure(Record):
    """One metric of a task; some have more keys."""

    value: Number
    stderr: Number | None  # None: not known
    ci95: list[Number] | None = None  # 95 % interval
    n: int | None = None  # rows or tokens behind it
    tokens: int | None = None  # of a perplexity
    nats_per_token: Number | None = None


class EvaluatedTask(Record):
    """Protocol of a task, and the rows that it scored."""

    rows: int  # scored
    of: int  # rows that the task has
    limit: int | None = None  # as asked for
    protocol: dict[str, Any] = {}
    sampler: dict[str, Any] = {}
    likelihood: dict[str, Any] = {}
    seconds: Number | None = None


class Evaluation(Record):
    """The content of evaluation.json: tasks of one model's weights, gathered over evaluations.

    All but results and tasks is of the last evaluation.
    """

    model: Text
    digest: str  # of weights, tokenizer and this program's version
    results: dict[str, dict[str, EvaluatedFigure]]  # by task and metric
    tasks: dict[str, EvaluatedTask]
    sampler: dict[str, Any]
    likelihood: dict[str, Any]
    nfe: int  # forwards of all requests: number of function evaluations
    seconds: Number
    device: str


def gathered(folder: Path, content: Evaluation) -> Evaluation:
    """Return results with those of other tasks that a folder has of the same weights."""
    try:
        with open(folder / EVALUATION_FILE, encoding="utf-8", opener=open_plain) as file:
            earlier = Evaluation.read(json.load(file))
    except (OSError, ValueError, RecursionError):
        return content
    if earlier.digest != content.digest:
        return content
    # A task of an older file does not say its settings.
    kept = {name: one for name, one in earlier.tasks.items() if one.sampler}
    results = {name: one for name, one in earlier.results.items() if name in kept}
    return content.model_copy(
        update={"results": results | content.results, "tasks": kept | content.tasks}
    )


def write_evaluation(folder: Path, content: Evaluation) -> Path:
    """Write evaluation.json into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / EVALUATION_FILE
    text = json.dumps(json.loads(to_json(content.content())), indent=2, ensure_ascii=False)
    write_whole(file, text + "\n")
    return file
