"""The trained module: one forward holds encoder, gather, head and loss, so that the hooks of DDP and FSDP2 run.

S documents, T tokens of the longest, N tokens of the batch, M masked, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..batch import Batch
from ..families import FAMILIES
from .head import Sums, masked_sums


@dataclass(frozen=True)
class Face:
    """The two halves of a family's model, so that hidden states can be gathered between them."""

    encode: Callable[[Any, torch.Tensor, torch.Tensor | None], torch.Tensor]  # (model, ids [S, T], mask [S, T]) -> [S, T, D]
    head: Callable[[Any, torch.Tensor], torch.Tensor]  # (model, hidden [..., D]) -> logits [..., V]


def _encoder(name: str) -> Callable[[Any, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    return lambda model, ids, mask: getattr(model, name)(input_ids=ids, attention_mask=mask).last_hidden_state


_OURS = Face(lambda model, ids, mask: model.encode(ids, mask), lambda model, hidden: model.head(hidden))
FACES = {
    "bert": Face(_encoder("bert"), lambda model, hidden: model.cls(hidden)),
    "roberta": Face(_encoder("roberta"), lambda model, hidden: model.lm_head(hidden)),
    "modernbert": Face(_encoder("model"), lambda model, hidden: model.decoder(model.head(hidden))),
    "llada": _OURS,
    "Dream": _OURS,
}


def bare(model: nn.Module) -> PreTrainedModel:
    """The model itself, adapter layers inside it but without the wrapper of peft."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


class DiffusionModel(nn.Module):
    """A masked LM with the loss inside its forward."""

    def __init__(self, model: nn.Module, pad_id: int):
        super().__init__()
        self.model = model
        self.pad_id = pad_id

    def forward(self, batch: Batch) -> Sums:
        model = bare(self.model)
        face, family = FACES[model.config.model_type], FAMILIES[model.config.model_type]
        rows, columns = batch.documents, batch.longest
        cell = batch.document * columns + batch.position  # [N] place of each token in the padded rectangle
        padded = torch.full((rows * columns,), self.pad_id, device=batch.ids.device).scatter(0, cell, batch.ids)
        mask = None
        if batch.ids.shape[0] != rows * columns:
            mask = torch.zeros(rows * columns, dtype=torch.long, device=cell.device).index_fill(0, cell, 1).view(rows, columns)
        hidden = face.encode(model, padded.view(rows, columns), mask)  # [S, T, D]
        # A document's first token is never masked, so the shifted place is still in the document.
        gathered = hidden.flatten(0, 1)[cell[batch.masked - family.shift]]  # [M, D]
        return masked_sums(
            gathered, lambda states: face.head(model, states), batch.target, batch.weight, batch.document[batch.masked], rows
        )


def own_dtype(model: nn.Module) -> torch.autocast:
    """Compute in the dtype of half-precision weights, where a few of them (new rows, a head that trains) are float32."""
    half = next((weight.dtype for weight in model.parameters() if weight.dtype in (torch.bfloat16, torch.float16)), None)
    return torch.autocast(next(model.parameters()).device.type, dtype=half or torch.bfloat16, enabled=half is not None)


def predictor(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """predict(ids [S, T], real [S, T] bool, places [M, 2]) -> logits [M, V] on the model's device, without gradients.

    Each row is padded on its right; position i predicts token i.
    """
    plain = bare(model)
    face, family = FACES[plain.config.model_type], FAMILIES[plain.config.model_type]

    @torch.no_grad()
    def predict(ids: torch.Tensor, real: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        device = plain.device
        mask = None if bool(real.all()) else real.long().to(device)
        with own_dtype(plain):
            hidden = face.encode(plain, ids.to(device), mask)
            rows, columns = places.to(device).unbind(1)
            return face.head(plain, hidden[rows, (columns - family.shift).clamp(min=0)])

    return predict
