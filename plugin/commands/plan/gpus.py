"""Hours, memory and cost of a planned run on named GPUs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...base.errors import JobError
from ...config.methods import METHODS
from ...config.parse import parse
from ...models.configuration import set_attention
from ...models.flops import FlopCount
from ...planning.budget import Budget
from ...planning.gpus import GPUS, RESULTS, GpuModel, Measured, choose_measured, measurements
from ...training.memory import ROOM
from .arguments import PlanRequest
from .model import MemoryEstimates, count_parameters_of, work_of


def plan_gpus(
    request: PlanRequest,
    *,
    config: Mapping[str, Any],
    method: str,
    length: int,
    budget: Budget,
    batch: int,
    accumulation: int,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Return a row for each GPU; what was not measured, or cannot be estimated, is None.

    `batch` and `accumulation`: rows of a micro-batch, and micro-batches of a step on a device.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        counted = count_parameters_of(file)
        set_attention(counted.config, method)
        values = {
            "training_method": method,
            "training_stage": "pretrain",
            "model_config": str(file),
            "dataset_name": "data",
            "max_length": length,
            "batch_size": batch,
            "gradient_accumulation_steps": accumulation,
        }
        estimates = MemoryEstimates(parse(values).params, counted.config)
    work = useful_work(work_of(counted.config), budget, METHODS[method].predicted)
    found = measurements(results)
    return [_row(request, GPUS[name], work, budget, estimates, found) for name in request.gpus]


def useful_work(count: FlopCount, budget: Budget, predicted: float) -> float:
    """Return the operations of the run as a run counts them for its MFU.

    6 N a token leaves out the head, of which only the share `predicted` of the tokens counts, and
    the pairs of attention.
    """
    rows = budget.tokens / budget.mean_tokens
    length = round(budget.mean_tokens)
    return rows * count.step([length], round(predicted * length))


def _row(
    request: PlanRequest,
    gpu: GpuModel,
    work: float,
    budget: Budget,
    estimates: MemoryEstimates,
    found: list[Measured],
) -> dict[str, Any]:
    if request.mfu:
        measured = Measured(request.mfu, None, budget.parameters, "as stated")
    else:
        measured = choose_measured(gpu, budget.parameters, found)
    speed = measured and gpu.peak * measured.share * request.devices
    hours = work / speed / 3600 if speed else None
    price = request.price
    memory, why = _memory(estimates, gpu, request.devices)
    return {
        "gpu": gpu.name,
        "peak_flops": gpu.peak,
        "memory_bytes": gpu.memory,
        "source": gpu.source,
        "mfu": measured.share if measured else None,
        "mfu_from": _origin(measured, gpu),
        "work_flops": work,
        "hours": hours,
        "cost": hours * request.devices * price if hours and price else None,
        "memory": memory,
        "memory_why": why,
    }


def _origin(measured: Measured | None, gpu: GpuModel) -> str:
    if measured is None:
        return "MFU unknown: none was measured (make bench DEVICE=cuda), state --mfu"
    if measured.gpu in (None, gpu):
        return f"MFU {measured.share:.1%}: {measured.origin}"
    return f"MFU {measured.share:.1%}: of another GPU, {measured.origin}"


def _memory(
    estimates: MemoryEstimates, gpu: GpuModel, devices: int
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the memory of one device, or None and the reason."""
    try:
        plan, ranks = estimates.plan(gpu.memory, devices)
    except (JobError, RuntimeError, NotImplementedError) as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    found = {name: size for name, size in plan.memory.as_json().items() if name != "heap"}
    return {
        **found,
        "fits": plan.memory.peak <= ROOM * gpu.memory,
        "recompute": str(plan.recompute),
        "sharded_over": ranks,
        "kernels": estimates.kernels,
    }, None
