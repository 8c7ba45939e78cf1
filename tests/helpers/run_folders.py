"""Run folders without a training: written by the run folder's own code, with figures of the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugin.config.parse import parse
from plugin.run.folder import JsonLines, RunFolder
from plugin.run.outcome import FuseResult, MemoryUse, Result, Throughput, Truncation
from plugin.run.run_file import Environment, RunFile
from plugin.run.stages_file import StageRecord, StagesFile, write_stages

ROWS = Truncation(rows=40, documents=40, truncated=0, dropped={})
MEMORY = MemoryUse(weights=1, gradients=1, optimizer=2, rest=4, peak=2_500_000_000)


def done(steps: int = 30, **changes: Any) -> Result:
    """Return the result of a run that ended well: 10 s of training at 90 tokens/s."""
    speed = Throughput(tokens_per_s=90.0, supervised_tokens_per_s=80.0, training_seconds=10.0)
    fuse = FuseResult(path="fused", fuse_base="trained", max_logit_difference=0.0, differences={})
    values: dict[str, Any] = {"outcome": "done", "code": 0, "steps": steps, "seconds": 75.0}
    values |= {"throughput": speed, "memory": MEMORY, "fuse": fuse}
    return Result(**values | {"truncation": {"train": ROWS, "eval": ROWS}} | changes)


def trained(step: int, loss: float, **more: Any) -> dict[str, Any]:
    """Return a logged line of training: 30 tokens a step."""
    return {"step": step, "loss": loss, "tokens": 30.0 * step, "learning_rate": 1e-3, **more}


def evaluated(step: int, loss: float, ci95: float = 0.1, documents: float = 40.0) -> dict[str, Any]:
    """Return a logged line of evaluation."""
    buckets = {"eval/loss_t00_10": loss / 2, "eval/loss_t90_100": loss}
    line = {"step": step, "eval/loss": loss, "eval/loss_ci95": ci95, **buckets}
    return line | {"eval/documents": documents}


LINES = (evaluated(0, 5.0, 0.5), trained(10, 4.0), trained(20, 3.0), trained(30, 2.0))


def write_run(
    folder: Path,
    metrics: Sequence[dict[str, Any]] = (*LINES, evaluated(30, 2.5)),
    result: Result | None = None,
    *,
    unfinished: bool = False,
    data: str = "digest",
    **params: Any,
) -> Path:
    """Write a run folder with run.json and metrics.jsonl; `unfinished`: without a result."""
    folder.mkdir(parents=True)
    asked = parse({"dataset_name": "d.jsonl", "model_name": "m", **params}).params.as_json()
    run = RunFile(
        params=asked | {"run_dir": str(folder)},
        environment=Environment(versions={"torch": "2.13.0"}, devices=["cpu"], data=data),
        result=None if unfinished else result or done(),
    )
    RunFolder(folder).write_run(run)
    lines = JsonLines(folder / "metrics.jsonl")
    for line in metrics:
        lines.write(line)
    lines.close()
    return folder


def write_stages_run(folder: Path, *names: str, begun: int) -> Path:
    """Write a run of stages, of which the first `begun` have run folders."""
    folder.mkdir(parents=True)
    records = [
        StageRecord(number=number, name=name, folder=f"{number}-{name}")
        for number, name in enumerate(names, start=1)
    ]
    write_stages(folder, StagesFile(stages=records))
    for record in records[:begun]:
        write_run(folder / record.folder, seed=record.number)
    return folder
