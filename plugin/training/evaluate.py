"""Evaluation with frozen noise: the same times and masks for the same document, in every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from ..data.documents import Documents
from ..data.packing import PADDED, Layout
from ..data.steps import Slot
from ..models.head import Sums
from .step import StepRules, build_step

EVAL_SEED = 20_240_611  # not the run's seed: losses of different runs are comparable
BUCKETS = 10  # of mask probability
_NORMAL_95 = 1.96  # standard errors of a 95 % half-width
# documents noised together: eos_policy batch fills to the longest of them, whatever the batch size
CHUNK = 64


@dataclass
class BestSoFar:
    """Lowest evaluation loss after step 0, and the number of evaluations in a row since."""

    loss: float | None = None
    since: int = 0

    def see(self, loss: float) -> bool:
        """Count an evaluation. Return whether it is the best so far; of equals, the earlier is."""
        better = self.loss is None or loss < self.loss
        self.loss, self.since = (loss, 0) if better else (self.loss, self.since + 1)
        return better


def evaluate(
    accelerator: Accelerator,
    module: nn.Module,
    documents: Documents,
    rules: StepRules,
    batch_size: int,
    layout: Layout = PADDED,
    beat: Callable[[], None] = lambda: None,
    *,
    even: bool = False,
) -> dict[str, float]:
    """Return the loss over all of `documents`, every rank its share; the same numbers on every
    rank.

    `beat` is called before each batch. `even`: as in build_step. `eval/loss` is the training
    objective, `eval/loss_ci95` its 95 % half-width over documents; `eval/loss_t30_40` is the mean
    nll in nats of masked tokens in documents whose mask probability was in [0.3, 0.4), and
    `eval/loss_ci95_t30_40` its half-width, unless it is of one document. Under objective mlm, every
    document is masked at mask_rate: one such pair of keys, and loss = its nll.
    """
    sums = evaluate_sums(accelerator, module, documents, rules, batch_size, layout, beat, even=even)
    return _metrics(sums, len(documents))


def evaluate_sums(
    accelerator: Accelerator,
    module: nn.Module,
    documents: Documents,
    rules: StepRules,
    batch_size: int,
    layout: Layout = PADDED,
    beat: Callable[[], None] = lambda: None,
    *,
    even: bool = False,
) -> torch.Tensor:
    """Return sums over all of `documents`, float64 [BUCKETS + 1, 6], the same on every rank.

    A row holds the sums of a, b, a * a, a * b, b * b, 1 over documents: of a bucket, a is the nll and
    b the masked tokens; in the last row, a is the weighted loss and b its divisor.
    """
    frozen = rules.undisturbed()
    frozen = replace(frozen, noise=replace(frozen.noise, seed=EVAL_SEED, t_sampling="stratified"))
    sums = torch.zeros(BUCKETS + 1, 6, dtype=torch.float64)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    module.eval()
    for start in range(0, len(documents), CHUNK):
        slots = [
            Slot(0, index, index) for index in range(start, min(start + CHUNK, len(documents)))
        ]
        step = build_step(
            slots,
            documents,
            frozen,
            batch_size=batch_size,
            layout=layout,
            rank=rank,
            ranks=ranks,
            even=even,
        )
        for micro_batch in step.micro_batches:
            beat()
            with torch.no_grad(), accelerator.autocast():
                out: Sums = module(micro_batch.batch.to(accelerator.device))
            for one, weighted, nll in zip(
                micro_batch.corruptions, out.weighted.tolist(), out.nll.tolist(), strict=False
            ):
                bucket = min(BUCKETS - 1, int(one.levels.mean_probability * BUCKETS))
                sums[bucket] += _products(nll, one.masked.size)
                sums[-1] += _products(weighted, one.count)
    if ranks > 1:
        sums = cast(
            "torch.Tensor", accelerator.reduce(sums.to(accelerator.device), reduction="sum")
        ).cpu()
    return sums


def _products(a: float, b: float) -> torch.Tensor:
    return torch.tensor([a, b, a * a, a * b, b * b, 1], dtype=torch.float64)


def ratio_of_sums(row: torch.Tensor) -> tuple[float, float]:
    """Return sum(a) / sum(b) of a row of `evaluate_sums`, and its standard error over documents.

    The variance comes from the residuals a - ratio * b.
    """
    a, b, aa, ab, bb, _ = row.tolist()
    found = a / max(b, 1e-12)
    residual = max(0.0, aa - 2 * found * ab + found * found * bb)
    return found, math.sqrt(residual) / max(b, 1e-12)


def _metrics(sums: torch.Tensor, documents: int) -> dict[str, float]:
    loss, stderr = ratio_of_sums(sums[-1])
    metrics = {
        "eval/loss": loss,
        "eval/loss_ci95": _NORMAL_95 * stderr,
        "eval/documents": float(documents),
    }
    for bucket in range(BUCKETS):
        nll, masked, *_, count = sums[bucket].tolist()
        if masked:
            name = f"t{bucket * 10:02d}_{bucket * 10 + 10:02d}"
            metrics[f"eval/loss_{name}"] = nll / masked
            if count > 1:
                metrics[f"eval/loss_ci95_{name}"] = _NORMAL_95 * ratio_of_sums(sums[bucket])[1]
    return metrics
