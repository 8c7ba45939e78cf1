"""The trained module: encoder, gather, head and loss in one forward.

One forward, because the hooks of DDP and FSDP2 run around it.

S documents, T tokens of the longest, N tokens of the batch, M masked, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..base.errors import JobError, Problem
from ..batch import Batch
from ..config.families import FAMILIES
from .attention import NAME, Segments, within
from .configuration import logit_shift
from .head import Rows, Sums, masked_sums
from .lora import has_adapter
from .masks import attention_bias, is_causal

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # see predictor


@dataclass(frozen=True)
class Backbone:
    """The parts of a family's model between which hidden states are gathered.

    The output embedding follows `transform`. A family without `encode_flat` cannot be packed: no
    test has shown that its documents stay apart.
    """

    # (model, ids [S, T], mask [S, T]) -> [S, T, D]
    encode: Callable[[Any, Tensor, Tensor | None], Tensor]
    # (model, ids [1, N], position [1, N], segments) -> [1, N, D]
    encode_flat: Callable[[Any, Tensor, Tensor, Segments], Tensor] | None
    # (model, hidden [M, D]) -> input of the output projection [M, D]
    transform: Callable[[Any, Tensor], Tensor]


def _flat_bert(model: Any, ids: Tensor, position: Tensor, segments: Segments) -> Tensor:
    return model.bert(input_ids=ids, position_ids=position, segments=segments).last_hidden_state


def _flat_roberta(model: Any, ids: Tensor, position: Tensor, segments: Segments) -> Tensor:
    first = model.config.pad_token_id + 1  # first position of RoBERTa's table
    return model.roberta(
        input_ids=ids, position_ids=position + first, segments=segments
    ).last_hidden_state


def _flat_modernbert(model: Any, ids: Tensor, position: Tensor, segments: Segments) -> Tensor:
    # Masks in a dictionary are used unchanged; otherwise a window over all N * N pairs is built.
    masks: Any = {"full_attention": None, "sliding_attention": None}
    return model.model(
        input_ids=ids, attention_mask=masks, position_ids=position, segments=segments
    ).last_hidden_state


def _roberta_transform(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden)))


def _encoder(name: str) -> Callable[[Any, Tensor, Tensor | None], Tensor]:
    return lambda model, ids, mask: (
        getattr(model, name)(input_ids=ids, attention_mask=_pairs(model, mask)).last_hidden_state
    )


def _pairs(model: Any, mask: Tensor | None) -> Tensor | None:
    """Return the mask of pairs from mask [S, T].

    transformers builds the same mask, but first asks whether all tokens are real: the CPU would
    wait for the device in every micro-batch.
    """
    if mask is None:
        return None
    return attention_bias(
        model.config, torch.empty(*mask.shape, 0, dtype=model.dtype, device=mask.device), mask
    )


def _encode_modernbert(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    masks: Any = None
    if (pairs := _pairs(model, mask)) is not None:
        # Contiguous like the other mask: a compiled layer is compiled twice for two layouts.
        pairs = pairs.contiguous()
        near = within(torch.arange(ids.shape[1], device=ids.device), model.config.sliding_window)
        far = False if pairs.dtype == torch.bool else torch.finfo(pairs.dtype).min
        masks = {"full_attention": pairs, "sliding_attention": pairs.masked_fill(~near, far)}
    return model.model(input_ids=ids, attention_mask=masks).last_hidden_state


_OURS = Backbone(
    lambda model, ids, mask: model.encode(ids, mask),
    lambda model, ids, position, segments: model.encode(
        ids, position_ids=position, segments=segments
    ),
    lambda model, hidden: hidden,
)
BACKBONES = {
    "bert": Backbone(
        _encoder("bert"), _flat_bert, lambda model, hidden: model.cls.predictions.transform(hidden)
    ),
    "roberta": Backbone(_encoder("roberta"), _flat_roberta, _roberta_transform),
    "modernbert": Backbone(
        _encode_modernbert, _flat_modernbert, lambda model, hidden: model.head(hidden)
    ),
    "llada": _OURS,
    "Dream": _OURS,
}


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the model without peft's wrapper; its adapter layers stay inside."""
    return cast("PreTrainedModel", model.get_base_model() if has_adapter(model) else model)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the model's layers, all of one kind, in order."""
    return [
        module
        for module in unwrapped(model).modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]


def positions(model: nn.Module) -> int:
    """Return the longest sequence that the model has positions for, in tokens."""
    config = unwrapped(model).config
    return config.max_position_embeddings - FAMILIES[config.model_type].position_offset


class DiffusionModel(nn.Module):
    """A masked LM whose forward returns the loss.

    `attention` is a backend of attention.py for flat batches; None pads.
    """

    def __init__(self, model: nn.Module, pad_id: int, attention: str | None = None):
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.attention = attention
        # The encoder as graphs of fixed sizes, see training/cuda_graphs.py: hidden states [>= N, D]
        # of training micro-batches, None for one that must run as it is.
        self.captured: Callable[[Batch], Tensor | None] | None = None
        if attention:
            plain = unwrapped(model)
            check_packable(plain.config.model_type)
            plain.set_attn_implementation(NAME)

    def forward(self, batch: Batch) -> Sums:
        model = unwrapped(self.model)
        backbone = BACKBONES[model.config.model_type]
        hidden, place = self._encoded(backbone, model, batch)
        # A document's first token is never masked, so the shifted place stays in the document.
        gathered = hidden[place[batch.masked - logit_shift(model.config)]]  # [M, D]
        rows = Rows(batch.target, batch.weight, batch.document[batch.masked], batch.documents)
        return masked_sums(backbone.transform(model, gathered), output_projection(model), rows)

    def predict(self, ids: Tensor, real: Tensor, places: Tensor) -> Tensor:
        """Predict as `predictor` does; FSDP2 gathers weights for methods only."""
        return predictor(self.model)(ids, real, places)

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
            segments = Segments.of(batch, self.attention, causal=is_causal(model.config))
            hidden = backbone.encode_flat(model, batch.ids[None], batch.position[None], segments)[0]
        return hidden, torch.arange(batch.ids.shape[0], device=hidden.device)

    def _padded(
        self, backbone: Backbone, model: PreTrainedModel, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states [S * T, D] of padded rows and the place of each token in them."""
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


def own_dtype(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return autocast to the dtype of half-precision weights, if the model has any.

    A few of its weights (new rows, a head that trains) may be float32.
    """
    half = next(
        (
            weight.dtype
            for weight in model.parameters()
            if weight.dtype in (torch.bfloat16, torch.float16)
        ),
        None,
    )
    return (
        torch.autocast(next(model.parameters()).device.type, dtype=half)
        if half
        else contextlib.nullcontext()
    )


def is_packable(model_type: str) -> bool:
    """Return True if tests hold that a family's documents stay apart in a flat batch."""
    return model_type in BACKBONES and BACKBONES[model_type].encode_flat is not None


def check_packable(model_type: str) -> None:
    """Refuse a family that cannot be packed. Raises JobError (exit 2) naming packing."""
    if not is_packable(model_type):
        able = ", ".join(name for name in BACKBONES if is_packable(name))
        raise JobError(
            Problem(
                "packing",
                f"a model that keeps packed documents apart ({able})",
                model_type,
                "Set packing off.",
            )
        )


def output_projection(model: PreTrainedModel) -> nn.Module:
    """Return the layer from transformed states [M, D] to logits [M, V]."""
    return cast("nn.Module", model.get_output_embeddings())


def predictor(model: nn.Module) -> Predict:
    """Return predict(ids [S, T], real [S, T] bool, places [M, 2]) -> logits [M, V].

    Logits are on the model's device, without gradients. Each row is padded on its right; position i
    predicts token i.
    """
    plain = unwrapped(model)
    backbone, shift = BACKBONES[plain.config.model_type], logit_shift(plain.config)

    @torch.no_grad()
    def predict(ids: Tensor, real: Tensor, places: Tensor) -> Tensor:
        device = plain.device
        mask = None if bool(real.all()) else real.long().to(device)
        with own_dtype(plain):
            hidden = backbone.encode(plain, ids.to(device), mask)
            rows, columns = places.to(device).unbind(1)
            gathered = hidden[rows, (columns - shift).clamp(min=0)]
            return output_projection(plain)(backbone.transform(plain, gathered))

    return predict


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Return logits [S, T, V] in float32 on the CPU, computed in eval mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with own_dtype(model):
        logits = model(input_ids=ids.to(device)).logits.float().cpu()
    model.train(was_training)
    return logits
