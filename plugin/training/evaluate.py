"""Evaluation with frozen noise: the same times and masks for the same document, in every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
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
# documents noised together: eos_policy batch fills to the longest of them, whatever the batch size
CHUNK = 64


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
    nll in nats of masked tokens in documents whose mask probability was in [0.3, 0.4). Under
    objective mlm, every document is masked at mask_rate: one such key, and loss = its nll.
    """
    frozen = rules.undisturbed()
    frozen = replace(frozen, noise=replace(frozen.noise, seed=EVAL_SEED, t_sampling="stratified"))
    # Rows: per-bucket nll, masked; then, in the last row, sums of w, c, w*w, w*c, c*c over
    # documents (w loss, c divisor).
    sums = torch.zeros(BUCKETS + 1, 5, dtype=torch.float64)
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
                sums[bucket, :2] += torch.tensor([nll, one.masked.size], dtype=torch.float64)
                count = one.count
                sums[-1] += torch.tensor(
                    [weighted, count, weighted * weighted, weighted * count, count * count],
                    dtype=torch.float64,
                )
    if ranks > 1:
        sums = cast(
            "torch.Tensor", accelerator.reduce(sums.to(accelerator.device), reduction="sum")
        ).cpu()
    return _metrics(sums, len(documents))


def _metrics(sums: torch.Tensor, documents: int) -> dict[str, float]:
    weighted, count, ww, wc, cc = sums[-1].tolist()
    loss = weighted / max(count, 1e-12)
    # Ratio estimator: the variance of sum(w) / sum(c) comes from the residuals w - loss * c.
    residual = max(0.0, ww - 2 * loss * wc + loss * loss * cc)
    metrics = {
        "eval/loss": loss,
        "eval/loss_ci95": 1.96 * math.sqrt(residual) / max(count, 1e-12),
        "eval/documents": float(documents),
    }
    for bucket in range(BUCKETS):
        nll, masked = sums[bucket, 0].item(), sums[bucket, 1].item()
        if masked:
            metrics[f"eval/loss_t{bucket * 10:02d}_{bucket * 10 + 10:02d}"] = nll / masked
    return metrics
