"""References of throughput.py and gpu.py: a padded rectangle, logits of every position.

`dllm_loss` is the loss of dLLM's trainer (github.com/ZHZisZZ/dllm, dllm/core/trainers/mdlm.py):
cross-entropy of every position over transposed logits, multiplied by zero where nothing was masked.
`careful_loss` is the best a padded trainer can do without a fused head: softmax and gradients at
masked tokens only. S documents, T tokens of the longest, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from plugin.objectives.masked import Corruption

Noised = tuple[NDArray[np.int32], Corruption]  # true ids and what was masked


def padded_loss(
    model: PreTrainedModel, documents: Sequence[Noised], pad_id: int, way: str
) -> Tensor:
    """Return the sum of weight * nll over one padded micro-batch, by the reference of that name."""
    longest = max(ids.size for ids, _ in documents)
    shape = (len(documents), longest)
    inputs, targets = torch.full(shape, pad_id), torch.full(shape, pad_id)
    weights, masked, real = (
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.long),
    )
    for row, (ids, one) in enumerate(documents):
        inputs[row, : ids.size] = torch.from_numpy(one.noisy.astype(np.int64))
        targets[row, : ids.size] = torch.from_numpy(ids.astype(np.int64))
        weights[row, one.masked] = torch.from_numpy(one.weight)
        masked[row, one.masked] = True
        real[row, : ids.size] = 1
    inputs, targets, weights, masked, real = (
        tensor.to(model.device) for tensor in (inputs, targets, weights, masked, real)
    )
    logits = model(input_ids=inputs, attention_mask=real).logits  # [S, T, V]
    return _LOSSES[way](logits, targets, weights, masked)


def dllm_loss(logits: Tensor, targets: Tensor, weights: Tensor, masked: Tensor) -> Tensor:
    nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # [S, T]
    return (nll * weights * masked.to(nll.dtype)).sum()


def careful_loss(logits: Tensor, targets: Tensor, weights: Tensor, masked: Tensor) -> Tensor:
    return (
        F.cross_entropy(logits[masked], targets[masked], reduction="none") * weights[masked]
    ).sum()


_LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "random": dllm_loss,
    "grouped": dllm_loss,
    "careful": careful_loss,
}
