"""Plan of a run before it is paid for: `main.py plan --flops 100e18 --model 1028`.

Steps, tokens, hours, memory and cost of a size and a budget; the job that trains it; a grid of
isoFLOP jobs; and the laws fitted to finished runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import JobError, Problem, guarded, json_line
from ...base.redact import guard_streams
from ...config.families import FAMILIES, SIZED_FAMILY
from ...config.methods import methods_of
from ...config.model_files import read_json
from ...planning.budget import Budget, mean_length, steps_for_flops, steps_for_tokens
from ...planning.jobs import split_rows, write_job
from ...planning.shapes import slow_shapes
from ...planning.sizes import LENGTH, SIZES, Size, nearest_size
from .arguments import PlanRequest, plan_options

LEARNING_RATE = 2e-4  # a usual peak at these sizes; no part of the plan


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model of a plan."""

    name: int | None  # its published size
    config: Mapping[str, Any]
    parameters: int  # without embeddings and head
    total: int
    method: str
    length: int  # tokens of a row

    def as_json(self) -> dict[str, Any]:
        return {
            "size": self.name,
            "parameters": self.parameters,
            "total_parameters": self.total,
            "training_method": self.method,
            "config": dict(self.config),
        }


def main(argv: Sequence[str]) -> int:
    guard_streams()
    return guarded(lambda: _plan(plan_options(argv)))


def _plan(request: PlanRequest) -> int:
    if request.fit:
        from .fit import fit_runs  # it needs numpy, and torch to count parameters

        printed, lines = fit_runs(request)
    elif request.grid:
        printed, lines = plan_grid(request)
    else:
        printed, lines = plan_run(request)
    for line in [json_line(printed)] if request.json else lines:
        print(line)
    return 0


def plan_run(request: PlanRequest) -> tuple[dict[str, Any], list[str]]:
    """Return the plan of one run as JSON and as lines, and write its job if one is asked for.

    Raises JobError (exit 2 or 4).
    """
    wanted = None if request.model or request.model_config else _best_parameters(request)
    if request.model_config:
        model = _given_model(request)
    else:
        size = SIZES[request.model] if request.model else nearest_size(wanted or 1)
        model = published_model(size, request)
    budget = budget_of(request, model)
    printed: dict[str, Any] = {
        **figures(budget, model),
        "model": model.as_json(),
        "best": wanted and {"parameters": wanted, "by": request.law.source},
        "num_machines": request.machines,
        "num_gpus": request.gpus_each,
        "gpus": _gpus(request, model, budget),
        "warnings": [found.as_json() for found in slow_shapes(model.config)],
        "out": str(request.out) if request.out else None,
    }
    if request.out:
        write_run_job(request.out, request, model, budget)
    return printed, list(_lines(printed, model))


def _best_parameters(request: PlanRequest) -> float:
    """Return the best number of parameters for the budget, by the request's law."""
    if request.flops:
        return request.law.for_flops(request.flops)
    return request.law.for_tokens(request.tokens or 1)


def published_model(size: Size, request: PlanRequest) -> Model:
    """Return a model of a published size. Raises JobError (exit 2) for a method of other families."""
    length = request.max_length or LENGTH
    able = methods_of(SIZED_FAMILY)
    if request.method and request.method not in able:
        raise JobError(
            Problem("training_method", f"{' or '.join(able)} for a published size", request.method)
        )
    config = size.config(request.vocabulary, length)
    return Model(
        name=size.name,
        config=config,
        parameters=size.parameters,
        total=size.parameters + 2 * request.vocabulary * size.width,
        method=request.method or able[0],
        length=length,
    )


def _given_model(request: PlanRequest) -> Model:
    """Return the model of --model_config. Raises JobError (exit 2 or 4)."""
    from .model import check_method_of, count_parameters_of

    path = Path(request.model_config).expanduser()
    counted = count_parameters_of(path)
    method = request.method or methods_of(counted.config.model_type)[0]
    check_method_of(counted, method)
    limit = counted.positions
    if limit and (request.max_length or 0) > limit:
        got = f"{request.max_length}, where the model has {limit} positions"
        raise JobError(Problem("max_length", f"at most {limit}", got))
    return Model(
        name=None,
        config=read_json(path),
        parameters=counted.parameters,
        total=counted.total,
        method=method,
        length=request.max_length or min(LENGTH, limit or LENGTH),
    )


def budget_of(request: PlanRequest, model: Model, flops: float | None = None) -> Budget:
    """Return the steps of a budget. Raises JobError (exit 2) if they are none."""
    how: dict[str, Any] = {
        "rows": request.rows,
        "machines": request.machines,
        "mean_tokens": mean_length(model.length, request.stochastic_length),
    }
    if flops := flops or request.flops:
        budget = steps_for_flops(flops, model.parameters, **how)
    else:
        budget = steps_for_tokens(request.tokens or 0, model.parameters, **how)
    if not budget.steps:
        field = "grid" if request.grid else "flops" if request.flops else "tokens"
        one = 6 * budget.parameters * budget.rows * budget.machines * budget.mean_tokens
        expected = f"a budget of a step or more ({one:.3g} FLOPs, {one / 6 / budget.parameters:.3g} tokens)"
        raise JobError(Problem(field, expected, f"{flops or request.tokens:.3g}"))
    return budget


def figures(budget: Budget, model: Model) -> dict[str, Any]:
    """Return the figures of a budget by the names that `plan --json` prints."""
    return {
        "steps": budget.steps,
        "tokens": budget.tokens,
        "flops": budget.flops,
        "rows_per_step": budget.rows * budget.machines,
        "rows_per_machine": budget.rows,
        "max_length": model.length,
        "mean_length": budget.mean_tokens,
    }


def write_run_job(path: Path, request: PlanRequest, model: Model, budget: Budget) -> None:
    """Write the job that trains a plan, and its model's config.json. Raises JobError (exit 2)."""
    batch, accumulation = split_rows(request.rows // request.devices)
    values: dict[str, Any] = {
        "training_method": model.method,
        "training_stage": "pretrain",
        "dataset_name": request.dataset_name,
        "tokenizer_name": request.tokenizer_name,
        "streaming": not request.data,
        "max_length": model.length,
        "batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "train_steps": budget.steps,
        "stochastic_length": request.stochastic_length,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.1,
        "loss_norm": "token",
    }
    launch = f"python main.py train --config {path}"
    if request.machines > 1:
        launch += (
            f" --num_machines {request.machines} --machine_rank 0 --main_process_ip ADDRESS"
            " --main_process_port 29500"
        )
    comments = [
        f"{budget.flops:.4g} FLOPs: {budget.steps} steps, {budget.tokens:.4g} tokens,"
        f" {budget.parameters} parameters without embeddings,",
        f"on {request.machines} x {request.gpus_each} devices. Written by main.py plan.",
        launch,
    ]
    kept = {name: value for name, value in values.items() if value not in ("", 0.0, False)}
    write_job(path, kept, model.config, comments)


def plan_grid(request: PlanRequest) -> tuple[dict[str, Any], list[str]]:
    """Write a job for each budget and size of a grid. Raises JobError (exit 2)."""
    assert request.out is not None
    rows: list[dict[str, Any]] = []
    for flops in request.grid:
        for name in request.sizes:
            model = published_model(SIZES[name], request)
            budget = budget_of(request, model, flops)
            path = request.out / f"{flops:.3g}-{name}m-{model.method}.yaml"
            write_run_job(path, request, model, budget)
            rows.append({"job": str(path), "size": name, **figures(budget, model)})
    lines = [
        f"{row['job']}  {row['steps']:,} steps, {row['tokens']:.4g} tokens, {row['flops']:.4g} FLOPs"
        for row in rows
    ]
    return {"jobs": rows}, lines


def _gpus(request: PlanRequest, model: Model, budget: Budget) -> list[dict[str, Any]]:
    if not request.gpus:
        return []
    from .gpus import plan_gpus  # memory and work need torch

    batch, accumulation = split_rows(max(1, budget.rows // request.gpus_each))
    return plan_gpus(
        request,
        config=model.config,
        method=model.method,
        length=model.length,
        budget=budget,
        batch=batch,
        accumulation=accumulation,
    )


def _lines(printed: Mapping[str, Any], model: Model) -> Iterator[str]:
    """Yield a plan as lines for a terminal."""
    named = f"size {model.name}" if model.name else f"a {FAMILIES[model.config['model_type']].name}"
    yield (
        f"model    {named}: {model.parameters:,} parameters without embeddings, {model.total:,} in all,"
        f" trained by {model.method}"
    )
    if best := printed["best"]:
        yield f"best     {best['parameters']:,.0f} parameters by {best['by']}"
    yield (
        f"run      {printed['steps']:,} steps of {printed['rows_per_step']} rows x"
        f" {printed['max_length']} tokens: {printed['tokens']:.4g} tokens, {printed['flops']:.4g} FLOPs"
    )
    for row in printed["gpus"]:
        yield _gpu_line(row)
    for found in slow_shapes(model.config):
        yield found.line
    if printed["out"]:
        yield f"job      {printed['out']}"


def _gpu_line(row: Mapping[str, Any]) -> str:
    hours = "hours unknown" if row["hours"] is None else f"{row['hours']:,.1f} hours"
    cost = "" if row["cost"] is None else f", cost {row['cost']:,.2f}"
    memory = row["memory"]
    held = (
        f"memory unknown ({row['memory_why']})"
        if memory is None
        else f"{memory['peak'] / 1e9:.1f} of {row['memory_bytes'] / 1e9:.0f} GB"
        f" ({'fits' if memory['fits'] else 'too much'}, recompute {memory['recompute']})"
    )
    return f"{row['gpu']:<8} {hours}{cost}; {row['mfu_from']}; {held}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
