"""The two references of throughput.py, written plainly after the formulas: a padded rectangle, logits of every position.

S documents, T tokens of the longest, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel

from plugin.objectives.mdlm import Corruption

Noised = tuple[NDArray[np.int32], Corruption]  # true ids and what was masked


def grouped(noised: Sequence[Noised], batch_size: int) -> list[list[Noised]]:
    """Micro-batches of neighbours in length: what dLLM's examples do with group_by_length."""
    return in_order(sorted(noised, key=lambda one: -one[0].size), batch_size)


def in_order(noised: Sequence[Noised], batch_size: int) -> list[list[Noised]]:
    """Micro-batches as the documents come: a random order, since the step's is one."""
    return [list(noised[start : start + batch_size]) for start in range(0, len(noised), batch_size)]


def padded_loss(model: PreTrainedModel, documents: Sequence[Noised], pad_id: int) -> torch.Tensor:
    """Sum of weight * nll over one padded micro-batch, from the logits [S, T, V] of every position, pads too."""
    longest = max(ids.size for ids, _ in documents)
    shape = (len(documents), longest)
    inputs, labels = torch.full(shape, pad_id), torch.full(shape, -100)
    weights, real = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    for row, (ids, one) in enumerate(documents):
        inputs[row, : ids.size] = torch.from_numpy(one.noisy.astype(np.int64))
        labels[row, one.masked] = torch.from_numpy(ids[one.masked].astype(np.int64))
        weights[row, one.masked] = torch.from_numpy(one.weight)
        real[row, : ids.size] = 1
    device = next(model.parameters()).device
    logits = model(input_ids=inputs.to(device), attention_mask=real.to(device)).logits.float()
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten().to(device), reduction="none", ignore_index=-100)
    return (nll * weights.flatten().to(device)).sum()
