"""Gather, head and cross-entropy: the only place where logits meet targets, for training, evaluation and likelihood.

Only masked tokens reach the output projection: at a vocabulary of 50k and more it is most of a small model's work.
N tokens of a batch, M masked, S documents, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Sums:
    """Per document, over its masked tokens; the loop alone divides."""

    weighted: torch.Tensor  # [S] sum of weight * nll: the objective
    nll: torch.Tensor  # [S] sum of nll, nats
    correct: torch.Tensor  # [S] masked tokens whose likeliest token is the true one


def masked_sums(
    hidden: torch.Tensor,  # [M, D] hidden states that predict the masked tokens
    head: Callable[[torch.Tensor], torch.Tensor],
    target: torch.Tensor,  # [M]
    weight: torch.Tensor,  # [M]
    document: torch.Tensor,  # [M]
    documents: int,
) -> Sums:
    """Sums over the masked tokens of each document, in float32 whatever the compute dtype."""
    logits = head(hidden).float()  # [M, V]
    nll = F.cross_entropy(logits, target, reduction="none")  # [M]
    correct = (logits.detach().argmax(-1) == target).float()

    def per_document(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(documents, dtype=values.dtype, device=values.device).index_add(0, document, values)

    return Sums(per_document(nll * weight), per_document(nll.detach()), per_document(correct))
