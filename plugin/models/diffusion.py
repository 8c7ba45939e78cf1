"""The trained module: encoder, gather, head and loss in one forward.

One forward, because the hooks of DDP and FSDP2 run around it.

S documents, T tokens of the longest, N tokens of the batch, M masked, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.grid import block_begin
from ..batch import Batch
from ..config.families import DECODERS
from ..run.facts import BlockFacts
from .attention import NAME, Attends, Segments
from .backbones import (
    BACKBONES,
    Backbone,
    attends_causally,
    check_packable,
    forbidden_output,
    output_projection,
    own_dtype,
    unwrapped,
)
from .configuration import block_facts, logit_shift
from .decoders import forward as decoder
from .head import Rows, Sums, Terms, masked_sums

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # see Predictor


class DiffusionModel(nn.Module):
    """A masked LM whose forward returns the loss.

    `attention` is a backend of attention.py for flat batches; None pads. `certainty`: weight of the
    head's certainty term, which training alone has: a loss that is evaluated leaves it out.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_id: int,
        attention: str | None = None,
        *,
        certainty: float = 0.0,
    ):
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.attention = attention
        self.certainty = certainty
        # The encoder as graphs of fixed sizes, see training/cuda_graphs.py: hidden states [>= N, D]
        # of training micro-batches, None for one that must run as it is.
        self.captured: Callable[[Batch], Tensor | None] | None = None
        if attention:
            plain = unwrapped(model)
            check_packable(plain.config.model_type)
            plain.set_attn_implementation(NAME)

    def forward(self, batch: Batch) -> Sums:
        model = unwrapped(self.model)
        document = batch.document[batch.masked]
        rows = Rows(batch.target, batch.weight, document, batch.documents, batch.unit)
        terms = Terms(forbidden_output(model.config), self.certainty if self.training else 0.0)
        return masked_sums(self.masked_states(batch), output_projection(model), rows, terms)

    def masked_states(self, batch: Batch) -> Tensor:
        """Return the input of the output projection for the masked tokens, [M, D]."""
        model = unwrapped(self.model)
        backbone = BACKBONES[model.config.model_type]
        hidden, place = self._encoded(backbone, model, batch)
        # A document's first token is never masked, so the shifted place stays in the document.
        shifted = batch.masked - logit_shift(model.config)
        source = batch.copies.source if batch.copies else shifted
        return backbone.transform(model, hidden[place[source]])  # [M, D]

    def predict(self, ids: Tensor, real: Tensor, places: Tensor) -> Tensor:
        """Predict as `Predictor` does; FSDP2 gathers weights for methods only."""
        return Predictor(self.model)(ids, real, places)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Return the encoder's hidden states of a flat batch, [>= N, D], its tokens first."""
        assert self.attention, "padded rows have no flat states"
        model = unwrapped(self.model)
        return self._encoded(BACKBONES[model.config.model_type], model, batch)[0]

    def _encoded(
        self, backbone: Backbone, model: PreTrainedModel, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        return (
            self._flat(backbone, model, batch)
            if self.attention
            else self._padded(backbone, model, batch)
        )

    def _flat(
        self, backbone: Backbone, model: PreTrainedModel, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states [>= N, D] and the place of each token in them, [N]."""
        hidden = None
        if self.captured and self.training and torch.is_grad_enabled():
            hidden = self.captured(batch)
        if hidden is None:
            assert self.attention
            assert backbone.encode_flat
            segments = Segments.of(batch, self.attention, causal=attends_causally(model))
            hidden = backbone.encode_flat(model, batch.ids[None], batch.position[None], segments)[0]
        return hidden, torch.arange(batch.ids.shape[0], device=hidden.device)

    def _padded(
        self, backbone: Backbone, model: PreTrainedModel, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states [S * T, D] of padded rows and the place of each token in them."""
        assert batch.copies is None, "rows with noisy copies are packed"
        rows, columns = batch.documents, batch.longest
        cell = batch.document * columns + batch.position  # [N] place of each token in the rectangle
        padded = torch.full((rows * columns,), self.pad_id, device=batch.ids.device).scatter(
            0, cell, batch.ids
        )
        mask = None
        if batch.ids.shape[0] != rows * columns:
            mask = (
                torch.zeros(rows * columns, dtype=torch.long, device=cell.device)
                .index_fill(0, cell, 1)
                .view(rows, columns)
            )
        return backbone.encode(model, padded.view(rows, columns), mask).flatten(0, 1), cell


class Predictor:
    """Logits of masked tokens, on the model's device, without gradients.

    Rows are padded on their right; place i of a result predicts token i.
    """

    def __init__(self, model: nn.Module):
        self._model = unwrapped(model)
        self._backbone = BACKBONES[self._model.config.model_type]
        # places from a token to the state that predicts it
        self.shift = logit_shift(self._model.config)
        self.causal = attends_causally(self._model)
        self.block: BlockFacts | None = block_facts(self._model.config)  # of a block model

    def with_blocks(self, size: int) -> Predictor:
        """Return a predictor of the same block model whose attention has blocks of `size` tokens.

        The model's own configuration stays as it is.
        """
        assert self.block, "no block model"
        other = copy.copy(self)
        other.block = self.block.model_copy(update={"size": size})
        return other

    def sees(self, begin: Tensor, columns: Tensor, tokens: int) -> Tensor:
        """Return bool [S, Q, T]: what each of `columns` [S, Q] of a canvas sees, by place.

        Of a causal model, or of a block model whose row s is noisy from begin[s] [S, 1] on.
        """
        if self.block:
            return decoder.canvas_pairs(self.block, begin, columns, tokens)
        assert self.causal, "with full attention a token sees all others"
        return torch.arange(tokens, device=columns.device) <= columns[..., None]

    @property
    def device(self) -> torch.device:
        return self._model.device

    @torch.no_grad()
    def __call__(self, ids: Tensor, real: Tensor, places: Tensor) -> Tensor:
        """Return logits [M, V] of places [M, 2] in ids [S, T], of which `real` [S, T] count."""
        real = real.to(self.device)
        mask = None if bool(real.all()) else real.long()
        if self.block:
            mask = self._block_pairs(real, places, self.block)
        with own_dtype(self._model):
            return self._project(
                self._backbone.encode(self._model, ids.to(self.device), mask), places
            )

    @torch.no_grad()
    def cached(self, ids: Tensor, window: Attends, places: Tensor) -> Tensor:
        """Return logits [M, V] of places [M, 2] among the columns of `window` alone.

        `ids` [S, Q] are the tokens of these columns, of which the window says what they attend to.
        """
        model = self._model
        assert self._backbone.encode_flat
        if model.config._attn_implementation != NAME:
            model.set_attn_implementation(NAME)
        with own_dtype(model):
            return self._project(
                self._backbone.encode_flat(model, ids.to(self.device), window.columns, window),
                places,
            )

    def _block_pairs(self, real: Tensor, places: Tensor, block: BlockFacts) -> Tensor:
        """Return the pairs [S, T, T] that attend, rows being noisy from their first masked block."""
        S, T = real.shape
        rows, columns = places.to(self.device).unbind(1)
        begin = torch.full((S,), T, device=self.device)
        begin = block_begin(begin.scatter_reduce(0, rows, columns, "amin")[:, None], block.size)
        every = torch.arange(T, device=self.device)[None]
        return decoder.canvas_pairs(block, begin, every, T) & real[:, None]

    def _project(self, hidden: Tensor, places: Tensor) -> Tensor:
        rows, columns = places.to(self.device).unbind(1)
        gathered = hidden[rows, (columns - self.shift).clamp(min=0)]
        return output_projection(self._model)(self._backbone.transform(self._model, gathered))


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Return logits [S, T, V] in float32 on the CPU, computed in eval mode; place i predicts token i."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    plain = unwrapped(model)
    aligned: Any = (
        partial(decoder.aligned_logits, plain) if plain.config.model_type in DECODERS else model
    )
    with own_dtype(model):
        logits = aligned(ids.to(device)).logits.float().cpu()
    model.train(was_training)
    return logits
