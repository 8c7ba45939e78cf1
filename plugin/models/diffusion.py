"""The trained module: one forward holds encoder, gather, head and loss, so that the hooks of DDP and FSDP2 run.

S documents, T tokens of the longest, N tokens of the batch, M masked, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..batch import Batch
from .head import Sums, masked_sums

# Per model_type: the encoder, and the head that maps hidden states [..., D] to logits [..., V].
FACES: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "bert": (lambda model: model.bert, lambda model, hidden: model.cls(hidden)),
    "roberta": (lambda model: model.roberta, lambda model, hidden: model.lm_head(hidden)),
    "modernbert": (lambda model: model.model, lambda model, hidden: model.decoder(model.head(hidden))),
}


class DiffusionModel(nn.Module):
    """A masked LM with the loss inside its forward."""

    def __init__(self, model: PreTrainedModel, pad_id: int):
        super().__init__()
        self.model = model
        self.pad_id = pad_id

    def forward(self, batch: Batch) -> Sums:
        encoder, head = FACES[self.model.config.model_type]
        rows, columns = batch.documents, batch.longest
        cell = batch.document * columns + batch.position  # [N] place of each token in the padded rectangle
        padded = torch.full((rows * columns,), self.pad_id, device=batch.ids.device).scatter(0, cell, batch.ids)
        mask = None
        if batch.ids.shape[0] != rows * columns:
            mask = torch.zeros(rows * columns, dtype=torch.long, device=cell.device).index_fill(0, cell, 1).view(rows, columns)
        hidden = encoder(self.model)(input_ids=padded.view(rows, columns), attention_mask=mask).last_hidden_state  # [S, T, D]
        gathered = hidden.flatten(0, 1)[cell[batch.masked]]  # [M, D]
        return masked_sums(
            gathered, lambda states: head(self.model, states), batch.target, batch.weight, batch.document[batch.masked], rows
        )


def predictor(model: PreTrainedModel) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """predict(ids [S, T], real [S, T] bool, places [M, 2]) -> logits [M, V] on the model's device, without gradients.

    Each row is padded on its right; position i predicts token i.
    """
    encoder, head = FACES[model.config.model_type]

    @torch.no_grad()
    def predict(ids: torch.Tensor, real: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        device = next(model.parameters()).device
        mask = None if bool(real.all()) else real.long().to(device)
        hidden = encoder(model)(input_ids=ids.to(device), attention_mask=mask).last_hidden_state
        rows, columns = places.to(device).unbind(1)
        return head(model, hidden[rows, columns])

    return predict
