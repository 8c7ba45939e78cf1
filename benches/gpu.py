"""Real shapes on one GPU: `python benches/throughput.py --device cuda`, under ten minutes a call.

Random weights, packed steps of 8 x 1024 tokens (48 x 1024 for ModernBERT), half of them masked on
average; forward, backward and optimizer. MFU is a share of a bfloat16 matrix product measured in
the same run. `--rehearse` runs every path on a CPU with narrow models: it proves the code, not a
figure. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import torch  # noqa: E402
from shapes import CUDA, Shape  # noqa: E402
from torch import nn  # noqa: E402
from work import make_rows  # noqa: E402

from plugin.base import quiet  # noqa: E402, F401  # before anything that imports torch
from plugin.config.families import FAMILIES  # noqa: E402
from plugin.models.diffusion import DiffusionModel, unwrapped  # noqa: E402
from plugin.models.flops import count_flops  # noqa: E402
from plugin.models.load import build_model, keep_exact  # noqa: E402
from plugin.models.lora import LoraSettings, add_adapter  # noqa: E402
from plugin.training.meters import measure_peak  # noqa: E402
from plugin.training.optimizer import make_optimizer  # noqa: E402

ROUNDS, WARMUP = 6, 2


@dataclass(frozen=True)
class Case:
    """A shape and how it is trained."""

    shape: Shape
    kind: str  # full, lora or qlora

    @property
    def name(self) -> str:
        return f"{self.shape.name}_{self.kind}"


def build(case: Case, device: torch.device) -> nn.Module:
    """Return the model as in the worker: masters, frozen bfloat16 base, or NF4 base."""
    with torch.device(device):
        model: Any = build_model(case.shape.config())
    family = FAMILIES[model.config.model_type]
    big = sum(weight.numel() for weight in model.parameters()) > 1e9
    if case.kind != "full" or big:
        model = model.to(
            torch.bfloat16
        )  # a big model in full: bfloat16 weights, stochastic rounding
    if case.kind == "qlora":
        quantise(model, family.head, device)
    if case.kind == "full":
        return model
    model.requires_grad_(False)
    return add_adapter(model, family, LoraSettings(32, 64, 0.0, "auto"), [])


def quantise(model: nn.Module, head: tuple[str, ...], device: torch.device) -> None:
    """Convert every linear layer below the head to NF4 with double quantisation, one at a time."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or any(
            name == part or name.startswith(f"{part}.") for part in head
        ):
            continue
        small = Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        small.weight = Params4bit(
            layer.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        small.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, own, small.to(device))
    keep_exact(model)


def measure(case: Case, device: torch.device, peak: float) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    model = build(case, device)
    module = DiffusionModel(model, 0, "varlen" if on_gpu else "loop")
    optimizer = make_optimizer(
        module,
        kind="adamw_8bit" if case.kind == "full" else "adamw",
        learning_rate=1e-5,
        weight_decay=0.0,
        seed=0,
    )
    weights = torch.cuda.memory_allocated() if on_gpu else 0
    counter, seconds, rates, useful = count_flops(model), [], [], []
    for number in range(WARMUP + ROUNDS):
        step = make_rows(case.shape, seed=number)
        began = time.perf_counter()
        for micro_batch in step.micro_batches:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                sums = module(micro_batch.batch.to(device))
            (sums.weighted.sum() / step.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        spent = time.perf_counter() - began
        if number >= WARMUP:
            seconds.append(spent)
            rates.append(step.tokens / spent)
            useful.append(counter.step(step.lengths, step.masked) / spent / peak)
    held = torch.cuda.max_memory_allocated() if on_gpu else 0
    result = {
        "tokens_per_s": round(statistics.median(rates), 1),
        "mfu": round(statistics.median(useful), 4) if on_gpu else None,
        "step_ms": round(1000 * statistics.median(seconds), 1),
        "peak_gb": round(held / 2**30, 2),
        "peak_minus_weights_gb": round((held - weights) / 2**30, 2),
        "parameters": sum(weight.numel() for weight in unwrapped(model).parameters()),
    }
    del model, module, optimizer
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return result


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="every path on the CPU with narrow models"
    )
    rehearse = parser.parse_args(argv).rehearse
    if not rehearse and not torch.cuda.is_available():
        print(
            "error[2]: device: expected a CUDA GPU, got none. Use --rehearse to try the code on a CPU.",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cpu" if rehearse else "cuda")
    peak = 1.0 if rehearse else measure_peak(device, torch.bfloat16)
    kinds = {
        "llada_8b": ("lora", "full", "qlora"),
        "dream_7b": ("lora",),
        "modernbert_base": ("full",),
        "modernbert_large": ("full",),
    }
    cases = [
        Case(shape.narrow() if rehearse else shape, kind)
        for shape in CUDA
        for kind in kinds[shape.name]
    ]
    results: dict[str, Any] = {}
    for case in cases:
        try:
            results[case.name] = measure(case, device, peak)
        except torch.OutOfMemoryError as error:
            results[case.name] = {"error": str(error).split("\n")[0]}
        print(f"{case.name:<24} {json.dumps(results[case.name])}", flush=True)
    name = "rehearsal" if rehearse else torch.cuda.get_device_name()
    print(json.dumps({"device": name, "matmul_tflops": round(peak / 1e12, 1), "cases": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
