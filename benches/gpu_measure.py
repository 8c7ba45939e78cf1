"""Figures of single cases of the GPU bench, in a process of their own.

A task is `cold:CASE` (the first step alone), `warm:CASE` (all steps), `reference:CASE` (the same
documents in a padded rectangle with all logits) or `run:N:FOLDER` (the steps of a finished run,
those after the first N counted). Each task prints one JSON object. A model has random weights, made
on the device. All that surrounds it is the worker's own code: its choices, its flags, its assembly
and its loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

from plugin.base import quiet  # noqa: E402, F401  # isort: skip  # before anything that imports torch

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from gpu_cases import CASES, WARMUP, Case  # noqa: E402
from meter import highest_resident, reset_peak, resident  # noqa: E402
from random_models import random_model  # noqa: E402
from references import padded_loss  # noqa: E402
from torch import nn  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

from plugin.assembly.data import Data  # noqa: E402
from plugin.assembly.model import base_config  # noqa: E402
from plugin.assembly.precision import COMPUTE, choose_precision  # noqa: E402
from plugin.assembly.resolve import Facts, Resolved, resolve  # noqa: E402
from plugin.assembly.training_data import training_data  # noqa: E402
from plugin.base.errors import first_line  # noqa: E402
from plugin.config.params import Params  # noqa: E402
from plugin.data.packing import PADDED  # noqa: E402
from plugin.run.folder import RunFolder  # noqa: E402
from plugin.training.loop import Hooks, Progress, Requests, Verdict  # noqa: E402
from plugin.training.meters import (  # noqa: E402
    memory_by_category,
    peak_bytes,
)
from plugin.worker.load import (  # noqa: E402
    Training,
    assemble_training,
    build_training,
    load_data,
    new_optimizer,
)
from plugin.worker.train import join, measure_devices, run_steps  # noqa: E402

GB = 1e9  # as the product's own lines count


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Watch:
    """Records of the loop: seconds and metrics of each step."""

    only_first: bool
    captured_s: float = 0.0  # seconds of a capture, which compiles what a first step would
    seconds: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    @property
    def first_step_s(self) -> float:
        return round(self.captured_s + self.seconds[0], 2)

    def tick(self, step: int, loss: float, seconds: float) -> None:
        self.seconds.append(seconds)

    def hooks(self) -> Hooks:
        return Hooks(
            requests=lambda: Requests(stop=self.only_first),
            log=lambda step, metrics: self.metrics.append(metrics),
            tick=self.tick,
            evaluate=lambda step: Verdict(),
            save=lambda step: None,
            sample=lambda step: None,
        )


@dataclass(frozen=True)
class Gauge:
    """Peak memory of a task on its device, above what the process held before the model."""

    device: torch.device
    before: int  # bytes; 0 on a GPU

    @staticmethod
    def of(device: torch.device) -> Gauge:
        return Gauge(device, 0 if device.type == "cuda" else resident())

    def begin(self) -> None:
        """Begin a new peak: a model made on the device passed through float32."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()

    def figures(self, module: nn.Module, optimizer: Any) -> dict[str, float]:
        """Return {peak_gb, peak_minus_weights_gb}; a heap that was there before takes no more."""
        on_gpu = self.device.type == "cuda"
        peak = peak_bytes(self.device) if on_gpu else highest_resident()
        weights = memory_by_category(module, optimizer, peak, self.before)["weights"]
        return {
            "peak_gb": gb(max(0, peak - self.before)),
            "peak_minus_weights_gb": gb(max(0, peak - self.before - weights)),
        }


def gb(size: int) -> float:
    return round(size / GB, 3)


def choose(params: Params, config: PretrainedConfig, data: Data, at: Accelerator) -> Resolved:
    """Return what a worker would choose, with the memory that it foretells."""
    facts = Facts(params=params, config=config, data=data, device=at.device, ranks=1, saves=False)
    resolved = resolve(facts)
    for line in resolved.lines():
        log(line)
    return resolved


def start(params: Params) -> Accelerator:
    """Join as a worker does; tasks of a rehearsal share a process, and accelerate its state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = join(params, log)
    assert accelerator.device.type == params.train_device, "torch finds no GPU in this process"
    return accelerator


def measure_case(case: Case, device: str, *, only_first: bool) -> dict[str, Any]:
    """Train a model of random weights on the documents of a case."""
    params = case.params(device)
    accelerator = start(params)
    gauge = Gauge.of(accelerator.device)
    data, config = case.data(params), case.config(params)
    resolved = choose(params, config, data, accelerator)
    model = random_model(config, params, resolved.compute, accelerator.device)
    began = time.perf_counter()
    training = assemble_training(params, model, data, resolved, accelerator, log)
    watch = Watch(only_first, time.perf_counter() - began if training.graph_bytes else 0.0)
    peak = run(params, accelerator, training, data, watch, gauge)
    if only_first:
        return {"first_step_s": watch.first_step_s}
    return figures(watch, gauge, training, resolved, peak, case.warmup)


def measure_run(folder: RunFolder, warmup: int) -> dict[str, Any]:
    """Repeat the steps of a finished run, without what a worker reports and saves."""
    params = Params.model_validate(folder.read_run().params)
    accelerator = start(params)
    gauge = Gauge.of(accelerator.device)
    data = load_data(params, folder, 1, None)
    resolved = choose(params, base_config(params, data.tokenizer), data, accelerator)
    training = build_training(params, data, resolved, accelerator, log)
    watch = Watch(only_first=False)
    peak = run(params, accelerator, training, data, watch, gauge)
    return figures(watch, gauge, training, resolved, peak, warmup)


def run(
    params: Params,
    accelerator: Accelerator,
    training: Training,
    data: Data,
    watch: Watch,
    gauge: Gauge,
) -> float:
    """Run the worker's loop. Returns the measured matmul peak in operations a second, 0 on CPUs."""
    peak = measure_devices(accelerator)
    gauge.begin()
    cadence = replace(data.clock.cadence, log_every=1)
    run_steps(params, accelerator, training, cadence, watch.hooks(), Progress(), peak)
    return peak


def figures(
    watch: Watch, gauge: Gauge, training: Training, resolved: Resolved, peak: float, warmup: int
) -> dict[str, Any]:
    """Return the figures of a finished case: medians of the steps after `warmup`."""
    seconds, steady = watch.seconds[warmup:], watch.metrics[warmup:]
    rates = [metrics["tokens_per_s"] for metrics in steady]
    tokens = [round(rate * spent) for rate, spent in zip(rates, seconds, strict=True)]
    memory = gauge.figures(training.module, training.optimizer)
    foretold = gb(resolved.memory.memory.holding(training.graph_bytes).peak)
    return {
        "tokens_per_s": round(statistics.median(rates), 1),
        "mfu": round(statistics.median(metrics["mfu"] for metrics in steady), 4) if peak else None,
        "matmul_tflops": round(peak / 1e12, 1) if peak else None,
        "step_ms": round(1000 * statistics.median(seconds), 2),
        "steps_ms": [round(1000 * spent, 2) for spent in seconds],
        "tokens_per_step": round(statistics.median(tokens)),
        "tokens": sum(tokens),
        "first_step_s": watch.first_step_s,
        **memory,
        "foretold_gb": foretold,
        "foretold_of_taken": round(foretold / memory["peak_gb"], 3) if memory["peak_gb"] else None,
        "foretold_logits_gb": gb(resolved.memory.memory.logits),
        "recompute": str(resolved.memory.recompute),
        "compile": resolved.compile.value,
        "captured": training.graph_bytes > 0,
        "chosen": list(resolved.lines()),
        "parameters": resolved.parameters,
    }


def measure_reference(case: Case, device_name: str) -> dict[str, Any]:
    """Train the same model on the same documents as dLLM does: padded, eager, all logits.

    The first measured step is the first that counts in measure_case.
    """
    params, device = case.params(device_name), torch.device(device_name)
    gauge = Gauge.of(device)
    compute = COMPUTE[choose_precision(params, device).value]
    data = case.data(params)
    model: Any = random_model(case.config(params), params, compute, device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = new_optimizer(params, model)
    make_step = training_data(params).steps(data, PADDED, 0, 1, log, even=False)
    gauge.begin()
    seconds, rates = [], []
    for number in range(case.warmup - WARMUP, case.warmup + case.compared):
        step = make_step(number)
        (micro_batch,) = step.micro_batches
        true = [data.train[index].ids for index in micro_batch.documents]
        documents = list(zip(true, micro_batch.corruptions, strict=True))
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=compute):
            loss = padded_loss(model, documents, data.chat.pad_id, "random") / step.count
        loss.backward()
        nn.utils.clip_grad_norm_(trained, params.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - began
        seconds.append(spent)
        rates.append(step.tokens / spent)
    return {
        "tokens_per_s": round(statistics.median(rates[WARMUP:]), 1),
        "step_ms": round(1000 * statistics.median(seconds[WARMUP:]), 2),
        "steps_ms": [round(1000 * spent, 2) for spent in seconds[WARMUP:]],
        **gauge.figures(model, optimizer),
    }


def measure(task: str, device: str, *, narrow: bool) -> dict[str, Any]:
    """Return the figures of a task."""
    way, _, name = task.partition(":")
    if way == "run":
        warmup, _, folder = name.partition(":")
        return measure_run(RunFolder(Path(folder)), int(warmup))
    case = CASES[name].narrow() if narrow else CASES[name]
    if way == "reference":
        return measure_reference(case, device)
    return measure_case(case, device, only_first=way == "cold")


def attempt(task: str, device: str, *, narrow: bool) -> dict[str, Any]:
    """Return the figures of a task, or the reason why there are none, so that the next can run."""
    try:
        return measure(task, device, narrow=narrow)
    except Exception as error:
        traceback.print_exc()
        return {"error": first_line(error)}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with narrow models")
    options = parser.parse_args(argv)
    device = "cpu" if options.rehearse else "cuda"
    for task in options.tasks:
        found = attempt(task, device, narrow=options.rehearse)
        print(json.dumps({"task": task, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
