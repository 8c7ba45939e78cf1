"""Real tokens a second of forward and backward, against dLLM's padded rectangle of all logits.

`make bench`. Ways: `random` (documents in random order) and `grouped` (neighbours in length, as
transformers' group_by_length) with dLLM's loss, `careful` (grouped, the best loss without a fused
head) and `ours` (packed, logits at masked tokens only). Each ratio has the same documents, masks
and weights on both sides; agreement and leaks are checked before anything is timed; ways are
interleaved, and ratios are medians of CPU time over rounds, so that a busy machine changes them
little. `--bars` exits 1 and names every missed bar. The last line is one JSON object. A typical
micro-batch stands for a run: see shapes.py; the references' lines: references.py.
"""

from __future__ import annotations

import os

# Threads that wait must sleep: spinning is CPU time too, several times the work's own when other
# programs want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bars import missed  # noqa: E402
from meter import Spent, matmul_peak, resident, spent_by  # noqa: E402
from references import padded_loss  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from shapes import CPU, Shape, draw_lengths  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from work import MASK, PAD, Work, make_work  # noqa: E402

from plugin.base import quiet  # noqa: E402, F401  # before anything that imports torch
from plugin.data.collate import lay_out  # noqa: E402
from plugin.data.packing import best_fit  # noqa: E402
from plugin.models.diffusion import DiffusionModel  # noqa: E402
from plugin.models.flops import count_flops  # noqa: E402
from plugin.models.load import build_model  # noqa: E402

# (order of the documents, way); every reference has a run of ours on its own documents next to it.
RUNS = (
    ("random", "random"),
    ("random", "ours"),
    ("grouped", "grouped"),
    ("grouped", "careful"),
    ("grouped", "ours"),
)


@dataclass(frozen=True)
class Agreement:
    """Relative difference of loss and gradient to dLLM's; largest leak between documents (nats)."""

    loss: float
    gradient: float
    leak: float


@dataclass(frozen=True)
class Found:
    """Figures of one shape. Rates are real tokens a CPU second, by order and way."""

    shape: Shape
    agreement: Agreement
    rates: dict[tuple[str, str], float]
    ratios: dict[str, float]  # way -> CPU time of that reference / ours
    real: dict[str, float]  # order -> share of the reference's positions that are real tokens
    tokens_per_s: float  # of ours, wall time
    rss_ratio: float
    flops: float  # useful operations a CPU second

    def as_json(self, peak: float) -> dict[str, Any]:
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "tokens_per_cpu_s": round(self.rates["random", "ours"], 1),
            **{f"vs_{way}": round(ratio, 3) for way, ratio in self.ratios.items()},
            "rss_ratio": round(self.rss_ratio, 3),
            "of_matmul_peak": round(self.flops / peak, 3),
            "reference_batch": self.shape.batch_size,
            **{f"{order}_real_share": round(share, 3) for order, share in self.real.items()},
        }


def run_way(way: str, module: DiffusionModel, model: PreTrainedModel, work: Work) -> float:
    """Run forward and backward of one step. Returns its loss."""
    if way != "ours":
        total = padded_loss(model, work.noised, PAD, way) / work.step.count
        total.backward()
        return total.item()
    loss = 0.0
    for micro_batch in work.step.micro_batches:
        total = module(micro_batch.batch).weighted.sum() / work.step.count
        total.backward()
        loss += total.item()
    return loss


def check_agreement(module: DiffusionModel, model: PreTrainedModel, work: Work) -> Agreement:
    losses, gradients = [], []
    for way in ("random", "ours"):
        model.zero_grad(set_to_none=True)
        losses.append(run_way(way, module, model, work))
        gradients.append(
            {
                name: weight.grad.clone()
                for name, weight in model.named_parameters()
                if weight.grad is not None
            }
        )
    model.zero_grad(set_to_none=True)
    theirs, ours = gradients
    apart = sum(((theirs[name] - ours[name]) ** 2).sum().item() for name in theirs) ** 0.5
    size = sum((value**2).sum().item() for value in theirs.values()) ** 0.5
    return Agreement(abs(losses[0] - losses[1]) / abs(losses[0]), apart / size, leak(module, work))


@torch.no_grad()
def leak(module: DiffusionModel, work: Work) -> float:
    """Return the largest change in another document's sum when one document changes.

    Every visible token of the first document of a micro-batch is changed.
    """
    micro_batch = work.step.micro_batches[0]
    assert len(micro_batch.documents) > 1, "a document alone has nobody to leak to"
    true = [work.noised[index][0] for index in micro_batch.documents]
    first = micro_batch.corruptions[0]
    noisy = np.where(first.noisy == MASK, first.noisy, first.noisy + 1).astype(np.int32)
    edited = [
        replace(first, noisy=noisy),
        *micro_batch.corruptions[1:],
    ]
    before, after = module(micro_batch.batch).weighted, module(lay_out(true, edited)).weighted
    return (before - after)[1:].abs().max().item()


def measure(shape: Shape, kind: str, rounds: int, empty: int) -> Found:
    """Measure one shape; `empty`: bytes resident before any model was built."""
    torch.manual_seed(0)
    model = build_model(shape.config())
    module, counter = DiffusionModel(model, PAD, "loop"), count_flops(model)
    agreement = check_agreement(module, model, make_work(shape.few(), kind, "random", 0))
    rounds_of: dict[tuple[str, str], list[Spent]] = {run: [] for run in RUNS}
    works: dict[str, list[Work]] = {"random": [], "grouped": []}
    for number in range(1, rounds + 1):
        for order, made in works.items():
            made.append(make_work(shape, kind, order, number))
        turn = 2 * number % len(RUNS)
        for order, way in (
            RUNS[turn:] + RUNS[:turn]
        ):  # no way is always first, or always behind the same one
            model.zero_grad(set_to_none=True)
            spent = spent_by(
                lambda order=order, way=way: run_way(way, module, model, works[order][-1])
            )
            rounds_of[order, way].append(spent)

    def rate(order: str, way: str, clock: str = "cpu") -> float:
        spent = zip(works[order], rounds_of[order, way], strict=True)
        return statistics.median(work.step.tokens / vars(one)[clock] for work, one in spent)

    def ratio(order: str, way: str) -> float:
        pairs = zip(rounds_of[order, way], rounds_of[order, "ours"], strict=True)
        return statistics.median(theirs.cpu / ours.cpu for theirs, ours in pairs)

    def grown(way: str) -> float:
        return statistics.median(one.peak - empty for one in rounds_of["random", way])

    useful = [counter.step(work.step.lengths, work.step.masked) for work in works["random"]]
    return Found(
        shape,
        agreement,
        rates={run: rate(*run) for run in RUNS},
        ratios={way: ratio(order, way) for order, way in RUNS if way != "ours"},
        real={
            order: statistics.median(real_share(work) for work in made)
            for order, made in works.items()
        },
        tokens_per_s=rate("random", "ours", "wall"),
        rss_ratio=grown("ours") / grown("random"),
        flops=statistics.median(
            count / one.cpu for count, one in zip(useful, rounds_of["random", "ours"], strict=True)
        ),
    )


def real_share(work: Work) -> float:
    """Return the share of real tokens among the positions of the padded rectangle."""
    return work.step.tokens / (len(work.noised) * max(ids.size for ids, _ in work.noised))


def packing_efficiency(kind: str, budget: int = 8192, documents: int = 1024) -> float:
    """Return the filled share of the budget over the micro-batches of one large step."""
    lengths = draw_lengths(kind, documents, seed=0)[0].tolist()
    packs = best_fit(range(documents), lengths, budget)
    return sum(lengths) / (len(packs) * budget)


def table(results: Sequence[Found], peak: float, kind: str) -> Table:
    title = f"real tokens a CPU second, forward + backward, {kind}-like lengths; one core multiplies {peak / 1e9:.0f} GFLOP/s"
    shown = Table(title=title)
    columns = (
        "shape",
        "batch of the\nreferences",
        "random order\nreal",
        "x",
        "grouped\nreal",
        "x",
        "careful\nx",
        "ours",
    )
    for column in (*columns, "of peak", "peak memory\nx random", "loss, gradient\napart", "leak"):
        shown.add_column(column, justify="left" if column == "shape" else "right")
    for one in results:
        shown.add_row(
            one.shape.name,
            str(one.shape.batch_size),
            f"{one.rates['random', 'random']:,.0f} ({one.real['random']:.0%})",
            f"{one.ratios['random']:.2f}",
            f"{one.rates['grouped', 'grouped']:,.0f} ({one.real['grouped']:.0%})",
            f"{one.ratios['grouped']:.2f}",
            f"{one.ratios['careful']:.2f}",
            f"{one.rates['random', 'ours']:,.0f}",
            f"{one.flops / peak:.0%}",
            f"{one.rss_ratio:.2f}",
            f"{one.agreement.loss:.0e}, {one.agreement.gradient:.0e}",
            f"{one.agreement.leak:g}",
        )
    return shown


def summarise(results: Sequence[Found], peak: float, kind: str, seconds: float) -> dict[str, Any]:
    return {
        "shapes": {one.shape.name: one.as_json(peak) for one in results},
        "loss_agreement": max(one.agreement.loss for one in results),
        "grad_agreement": max(one.agreement.gradient for one in results),
        "leak": max(one.agreement.leak for one in results),
        "packing_efficiency": round(packing_efficiency(kind), 4),
        "matmul_gflops": round(peak / 1e9, 1),
        "lengths": kind,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": round(seconds, 1),
    }


def main(argv: Sequence[str]) -> int:
    where = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    where.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device, others = where.parse_known_args(argv)
    if device.device == "cuda":
        from gpu import main as on_cuda  # the real shapes have a bench and options of their own

        return on_cuda(others)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[where]
    )
    parser.add_argument(
        "--shapes",
        nargs="*",
        choices=[shape.name for shape in CPU],
        default=[shape.name for shape in CPU],
    )
    parser.add_argument("--lengths", choices=("alpaca", "tulu", "long"), default="alpaca")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--bars", action="store_true", help="exit 1 naming every bar that is missed"
    )
    parser.add_argument("--save", type=Path, help="write the JSON there too, with the command")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="every path with narrow models: proves the code, not a figure",
    )
    options = parser.parse_args(argv)
    began, peak, empty = time.perf_counter(), matmul_peak(), resident()
    results = []
    for shape in (shape for shape in CPU if shape.name in options.shapes):
        results.append(
            measure(
                shape.narrow() if options.rehearse else shape,
                options.lengths,
                options.rounds,
                empty,
            )
        )
        print(
            f"{shape.name}: {results[-1].as_json(peak)}", file=sys.stderr, flush=True
        )  # minutes pass between shapes
    Console(width=150).print(table(results, peak, options.lengths))
    summary = summarise(results, peak, options.lengths, time.perf_counter() - began)
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python benches/throughput.py", *argv])
        options.save.write_text(
            json.dumps({"command": command, **summary}, indent=1) + "\n", encoding="utf-8"
        )
    misses = missed(summary) if options.bars else []
    for miss in misses:
        print(f"bar missed: {miss}", file=sys.stderr)
    print(json.dumps(summary))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
