"""Counts of packs, added over all ranks: each rank knows only its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from ...data.prepare import SplitReport
from ...run.outcome import Truncation
from ...training.exchange import gather_values
from ...training.step import Step


def add_up(
    accelerator: Accelerator, make_step: Callable[[int], Step], longest: int
) -> Callable[[int], Step]:
    """Return `make_step` with the counts of all ranks added: one small reduction a step.

    `longest`: tokens that a document may have. Lengths travel as a histogram, so that every rank
    sends the same size. Collective.
    """
    if accelerator.num_processes == 1:
        return make_step

    def whole(step: int) -> Step:
        own = make_step(step)
        facts = [
            own.count,
            own.masked,
            own.supervised,
            own.cut,
            *(own.rows or (0, 0)),
            *np.bincount(own.lengths, minlength=longest + 1),
        ]
        sums = torch.tensor(facts, dtype=torch.float64, device=accelerator.device)
        total = cast("torch.Tensor", accelerator.reduce(sums, reduction="sum")).cpu().numpy()
        masked, supervised, cut, tokens, pairs = total[1:6].astype(int).tolist()
        lengths = np.repeat(np.arange(longest + 1), total[6:].astype(int)).tolist()
        return replace(
            own,
            count=float(total[0]),
            masked=masked,
            supervised=supervised,
            cut=cut,
            lengths=tuple(lengths),
            rows=(tokens, pairs) if own.rows else None,
        )

    return whole


def full_report(accelerator: Accelerator, report: SplitReport) -> Truncation:
    """Return the fate of the rows of the first pass so far, over all ranks. Collective."""
    share: dict[str, Any] = {
        "rows": report.rows,
        "documents": report.documents,
        "truncated": report.truncated,
        "dropped": report.dropped,
    }
    shares = gather_values(accelerator, share)
    dropped: dict[str, int] = {}
    for one in shares:
        for reason, count in one["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    rows, documents, truncated = (
        sum(one[key] for one in shares) for key in ("rows", "documents", "truncated")
    )
    return Truncation(rows=rows, documents=documents, truncated=truncated, dropped=dropped)
