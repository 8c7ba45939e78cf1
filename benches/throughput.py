"""How many real tokens a second does forward + backward take, against a padded rectangle with full logits?

`make bench`. Ways: `random` (documents in the step's random order, padded), `grouped` (neighbours in length, padded) and `ours` (packed,
logits at masked tokens only). Same documents, masks and weights for all; agreement is checked before anything is timed; ways are
interleaved, and ratios are medians of CPU time over rounds (of the device's time on CUDA). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from references import grouped, in_order, padded_loss  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from shapes import CPU, Shape, draw_lengths  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from work import MASK, PAD, Work, make_work  # noqa: E402

from plugin import quiet  # noqa: E402, F401  # before anything that imports torch
from plugin.data.layout import best_fit, lay_out  # noqa: E402
from plugin.families import FAMILIES  # noqa: E402
from plugin.models.diffusion import DiffusionModel  # noqa: E402
from plugin.models.flops import count_flops  # noqa: E402
from plugin.models.load import build_model  # noqa: E402

WAYS = ("random", "grouped", "ours")


def run_way(way: str, module: DiffusionModel, model: PreTrainedModel, work: Work, shape: Shape, device: torch.device) -> float:
    """Forward and backward of one step; returns its loss."""
    loss = 0.0
    if way == "ours":
        for piece in work.step.pieces:
            total = module(piece.batch.to(device)).weighted.sum() / work.step.count
            total.backward()
            loss += total.item()
        return loss
    for documents in (in_order if way == "random" else grouped)(work.noised, shape.batch_size):
        total = padded_loss(model, documents, PAD) / work.step.count
        total.backward()
        loss += total.item()
    return loss


def agreement(module: DiffusionModel, model: PreTrainedModel, work: Work, shape: Shape, device: torch.device) -> dict[str, float]:
    """Relative difference of loss and gradient between ours and the reference, and what leaks between packed documents."""
    losses, gradients = [], []
    for way in ("random", "ours"):
        model.zero_grad(set_to_none=True)
        losses.append(run_way(way, module, model, work, shape, device))
        gradients.append(
            {name: weight.grad.detach().clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    model.zero_grad(set_to_none=True)
    apart = sum(((gradients[0][name] - gradients[1][name]) ** 2).sum().item() for name in gradients[0]) ** 0.5
    size = sum((value**2).sum().item() for value in gradients[0].values()) ** 0.5
    return {"loss": abs(losses[0] - losses[1]) / abs(losses[0]), "grad": apart / size, "leak": leak(module, work, device)}


@torch.no_grad()
def leak(module: DiffusionModel, work: Work, device: torch.device) -> float:
    """Change every visible token of the first document of a micro-batch: the largest change in another document's sum."""
    piece = next((one for one in work.step.pieces if len(one.documents) > 1), work.step.pieces[0])
    true = [work.noised[index][0] for index in piece.documents]
    first = piece.corruptions[0]
    noisy = np.where(first.noisy == MASK, first.noisy, first.noisy + 1).astype(np.int32)
    edited = [type(first)(noisy, first.masked, first.weight, first.count, first.t, first.probability), *piece.corruptions[1:]]
    before = module(piece.batch.to(device)).weighted
    after = module(lay_out(true, edited).to(device)).weighted
    return (before - after)[1:].abs().max().item() if len(true) > 1 else 0.0


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(wall seconds, CPU seconds; on CUDA both are the device's wall time)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        cpu = time.process_time() - (time.perf_counter() - wall)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(shape: Shape, kind: str, rounds: int, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build_model(shape.config()).to(device)
    module = DiffusionModel(model, PAD, "varlen" if device.type == "cuda" else "loop")
    agreed = agreement(module, model, make_work(shape, kind, 0), shape, device)
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    tokens, flops = [], []
    counter = count_flops(model)
    for number in range(1, rounds + 1):
        work = make_work(shape, kind, number)
        tokens.append(work.step.tokens)
        flops.append(counter.step(work.step.lengths, work.step.masked))
        for way in WAYS[number % 3 :] + WAYS[: number % 3]:  # every way is first, second and last in turn
            model.zero_grad(set_to_none=True)
            seconds[way].append(timed(lambda way=way, work=work: run_way(way, module, model, work, shape, device), device))
    rates = {way: statistics.median(count / wall for count, (wall, _) in zip(tokens, seconds[way], strict=True)) for way in WAYS}

    def ratio(way: str) -> float:
        return statistics.median(other / ours for (_, other), (_, ours) in zip(seconds[way], seconds["ours"], strict=True))

    useful = statistics.median(count / wall for count, (wall, _) in zip(flops, seconds["ours"], strict=True))
    return {"rates": rates, "vs_grouped": ratio("grouped"), "vs_random": ratio("random"), "flops_per_s": useful, **agreed}


def peak_growth(shape: Shape, way: str, kind: str) -> int:
    """Bytes by which one step of one way lifts the peak over an imported, empty process; runs in a process of its own."""
    before = peak_rss()
    torch.manual_seed(0)
    model = build_model(shape.config())
    run_way(way, DiffusionModel(model, PAD, "loop"), model, make_work(shape, kind, 1), shape, torch.device("cpu"))
    return peak_rss() - before


def peak_rss() -> int:
    """Bytes of this program's peak; getrusage would count what the parent held when it forked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def rss_ratio(shape: Shape, kind: str) -> float:
    grown = {}
    for way in ("random", "ours"):
        command = [sys.executable, __file__, "--rss", way, "--shapes", shape.name, "--lengths", kind]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        grown[way] = int(done.stdout.splitlines()[-1])
    return grown["ours"] / grown["random"]


def packing_efficiency(kind: str, budget: int = 8192, documents: int = 1024) -> float:
    """Share of the budget that is filled, over the micro-batches of one large step."""
    lengths = draw_lengths(kind, documents, seed=0)[0].tolist()
    packs = best_fit(range(documents), lengths, budget)
    return sum(lengths) / (len(packs) * budget)


def matmul_peak(device: torch.device) -> float:
    """Operations a second of a square float32 product, measured in this run."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = min(timed(lambda: left @ right, device)[0] for _ in range(5))
    return 2 * size**3 / best


def table(results: dict[str, dict[str, Any]], peak: float, kind: str) -> Table:
    shown = Table(title=f"real tokens/s, forward + backward, {kind}-like lengths; matmul peak {peak / 1e9:.0f} GFLOP/s")
    for column in (
        "shape",
        "random",
        "grouped",
        "ours",
        "x grouped",
        "x random",
        "RSS x random",
        "of peak",
        "loss, gradient apart",
        "leak",
    ):
        shown.add_column(column, justify="left" if column == "shape" else "right")
    for name, one in results.items():
        rates = (f"{one['rates'][way]:,.0f}" for way in WAYS)
        apart = f"{one['loss']:.0e}, {one['grad']:.0e}"
        shares = (
            f"{one['vs_grouped']:.2f}",
            f"{one['vs_random']:.2f}",
            f"{one['rss_ratio']:.2f}",
            f"{one['flops_per_s'] / peak:.0%}",
        )
        shown.add_row(name, *rates, *shares, apart, f"{one['leak']:g}")
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=[shape.name for shape in CPU])
    parser.add_argument("--lengths", choices=("alpaca", "tulu", "long"), default="alpaca")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rss", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    chosen = [shape for shape in CPU if shape.name in options.shapes]
    if options.rss:
        print(peak_growth(chosen[0], options.rss, options.lengths))
        return 0
    if options.device == "cuda":
        from cuda import main as on_cuda  # the real shapes need a GPU, and their own way of being built

        return on_cuda([])
    device = torch.device("cpu")
    peak = matmul_peak(device)
    results: dict[str, dict[str, Any]] = {}
    for shape in chosen:
        rounds = max(2, options.rounds // 2) if shape.name == "modernbert_base" else options.rounds
        results[shape.name] = measure(shape, options.lengths, rounds, device) | {"rss_ratio": rss_ratio(shape, options.lengths)}
        print(f"{shape.name}: {results[shape.name]}", file=sys.stderr, flush=True)  # minutes pass between shapes
    Console(width=150).print(table(results, peak, options.lengths))
    shapes = {
        name: {
            "tokens_per_s": round(one["rates"]["ours"], 1),
            **{key: round(one[key], 3) for key in ("vs_grouped", "vs_random", "rss_ratio")},
        }
        for name, one in results.items()
    }
    summary = {
        "shapes": shapes,
        "loss_agreement": max(one["loss"] for one in results.values()),
        "grad_agreement": max(one["grad"] for one in results.values()),
        "leak": max(one["leak"] for one in results.values()),
        "packing_efficiency": round(packing_efficiency(options.lengths), 4),
        "matmul_gflops": round(peak / 1e9, 1),
        "lengths": options.lengths,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    assert set(FAMILIES) >= {shape.model_type for shape in CPU}
    sys.exit(main(sys.argv[1:]))
