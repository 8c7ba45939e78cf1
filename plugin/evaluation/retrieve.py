"""Retrieval probe: each query's own document among all held-out ones, by cosine similarity.

Q queries, P distinct documents, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .classify import wilson
from .features import Encoder

QUERIES = 1024  # compared together


def ranks(queries: Tensor, documents: Tensor, relevant: Tensor) -> Tensor:
    """Return the rank of each query's own document [Q], from 1.

    `queries` [Q, D], `documents` [P, D], `relevant` [Q] places among the documents. Of equal
    similarities the own document's is the last: an encoder that maps all texts to one vector finds
    nothing.
    """
    vectors = F.normalize(documents, dim=-1)
    found: list[Tensor] = []
    for some, own in zip(queries.split(QUERIES), relevant.split(QUERIES), strict=True):
        similar = F.normalize(some, dim=-1) @ vectors.T
        # A margin of rounding: equal vectors may differ in the last bits of their products.
        least = similar.gather(1, own[:, None]) - 1e-6
        found.append((similar >= least).sum(-1))
    return torch.cat(found)


def recall(found: Tensor, most: int) -> float:
    """Return the share of queries whose own document is among the first `most`."""
    return (found <= most).double().mean().item()


def reciprocal_rank(found: Tensor) -> float:
    """Return the mean of 1 / rank (MRR)."""
    return (1 / found.double()).mean().item()


def retrieve(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return recall@1 with its 95 % interval, recall@10 and MRR over pairs (query, document)."""
    documents = list(dict.fromkeys(document for _, document in pairs))
    place = {document: number for number, document in enumerate(documents)}
    found = ranks(
        encoder.features([query for query, _ in pairs]),
        encoder.features(documents),
        torch.tensor([place[document] for _, document in pairs]),
    )
    return {
        "recall_at_1": recall(found, 1),
        "ci95": list(wilson(int((found == 1).sum()), len(pairs))),
        "recall_at_10": recall(found, 10),
        "mrr": reciprocal_rank(found),
    }
