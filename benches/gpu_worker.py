"""One job through `main.py train`, and the GPU bench on the same steps: a worker's own cost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gpu_cases import CASES, Case
from job import Bench, first_device
from shapes import draw_lengths

NAME = "worker"
# A word of two letters is one token of the tokenizer that the job trains on these rows.
WORDS = [first + second for first in "bdfglmnprst" for second in "aeiou"]


@dataclass(frozen=True)
class Job:
    """Size of the job: a case of small steps, of which those after `warmup` count."""

    case: Case
    steps: int
    warmup: int
    logging_steps: int  # both others are multiples of it


JOB = Job(CASES["modernbert_base_full_alpaca"], steps=60, warmup=20, logging_steps=10)


def narrow(job: Job) -> Job:
    return replace(job, case=job.case.narrow(), steps=8, warmup=2, logging_steps=2)


def play_worker(bench: Bench, measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return the bench's figures of a job's own steps, with the job's tokens a second.

    `measure` runs a task of gpu_measure.py. The job's seconds are those of the wall between two
    logged steps, so that all that a worker does around its steps counts.
    """
    job = narrow(JOB) if bench.rehearse else JOB
    title = {"title": f"main.py train: {job.case.title}"}
    folder = bench.root / "run"
    ended = bench.train(folder, _values(bench, job))
    if ended.code:
        return title | {"error": ended.line}
    found = measure(f"run:{job.warmup}:{folder}")
    if "error" in found:
        return title | found
    found["first_step_warm_s"] = found.pop("first_step_s")
    rate = found["tokens"] / _seconds(folder, job)
    bench_rate = 1000 * found["tokens"] / sum(found["steps_ms"])
    memory = ended.result()["memory"]
    return {
        **title,
        **found,
        "worker_tokens_per_s": round(rate, 1),
        "worker_ratio": round(rate / bench_rate, 3),
        "worker_peak_gb": round(memory["peak"] / 1e9, 3),
    }


def _values(bench: Bench, job: Job) -> dict[str, object]:
    """Write model configuration and rows. Return the job's parameters."""
    shape = job.case.shape
    config, rows = bench.root / "config.json", bench.root / "rows.jsonl"
    config.write_text(json.dumps({"model_type": shape.model_type, **shape.fields}))
    _write_rows(rows, job.case.documents * job.steps // 2, job.case.work)
    asked = job.case.params(bench.device)
    return {
        **first_device(bench.device),
        "model_config": config,
        "dataset_name": rows,
        "training_method": asked.training_method,
        "dtype": asked.dtype,
        "max_length": asked.max_length,
        "eos_policy": asked.eos_policy,
        "batch_size": job.case.documents,
        "learning_rate": asked.learning_rate,
        "train_steps": job.steps,
        "logging_steps": job.logging_steps,
        "save_steps": job.steps,
        "eval_strategy": "no",
        "fuse_model": "false",
    }


def _write_rows(path: Path, count: int, kind: str) -> None:
    """Write prompts and answers of such lengths, [CLS] and both [SEP] included."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for length, prompt in zip(*draw_lengths(kind, count, seed=0), strict=True):
            asked = " ".join(rng.choices(WORDS, k=max(1, int(prompt) - 2)))
            answer = " ".join(rng.choices(WORDS, k=max(1, int(length - prompt) - 1)))
            file.write(json.dumps({"prompt": asked, "response": answer}) + "\n")


def _seconds(folder: Path, job: Job) -> float:
    """Return the wall time between the last log of the warm-up and that of the run."""
    logged = {
        event["step"]: datetime.fromisoformat(event["time"])
        for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        if (event := json.loads(line))["type"] == "metrics"
    }
    return (logged[job.steps] - logged[job.warmup]).total_seconds()
