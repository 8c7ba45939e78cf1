"""The trained module: encoder, gather, head and loss in one forward.

One forward, because the hooks of DDP and FSDP2 run around it.

S documents, T tokens of the longest, N tokens of the batch, M masked, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..base.errors import JobError, Problem
from ..base.grid import block_begin
from ..batch import Batch
from ..config.families import DECODERS
from ..run.facts import BlockFacts
from .attention import NAME, Attends, Segments, within
from .configuration import attention_pattern, block_facts, logit_shift, longest_sequence
from .decoders import forward as decoder
from .head import Rows, Sums, Terms, masked_sums
from .lora import has_adapter
from .masks import attention_bias

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # see Predictor


@dataclass(frozen=True)
class Backbone:
    """The parts of a family's model between which hidden states are gathered.

    The output embedding follows `transform`. A family without `encode_flat` cannot be packed: no
    test has shown that its documents stay apart.
    """

    # (model, ids [S, T], mask [S, T]) -> [S, T, D]
    encode: Callable[[Any, Tensor, Tensor | None], Tensor]
    # (model, ids [1, N], position [1, N], segments) -> [1, N, D]; or queried columns, [S, Q]
    encode_flat: Callable[[Any, Tensor, Tensor, Segments | Attends], Tensor] | None
    # (model, hidden [M, D]) -> input of the output projection [M, D]
    transform: Callable[[Any, Tensor], Tensor]


def _flat_bert(model: Any, ids: Tensor, position: Tensor, segments: Segments | Attends) -> Tensor:
    return model.bert(input_ids=ids, position_ids=position, segments=segments).last_hidden_state


def _flat_roberta(
    model: Any, ids: Tensor, position: Tensor, segments: Segments | Attends
) -> Tensor:
    first = model.config.pad_token_id + 1  # first position of RoBERTa's table
    return model.roberta(
        input_ids=ids, position_ids=position + first, segments=segments
    ).last_hidden_state


def _flat_modernbert(
    model: Any, ids: Tensor, position: Tensor, segments: Segments | Attends
) -> Tensor:
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
    **dict.fromkeys(
        DECODERS, Backbone(decoder.encode, decoder.encode_flat, lambda model, hidden: hidden)
    ),
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
    return longest_sequence(unwrapped(model).config)


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
            segments = Segments.of(batch, self.attention, causal=_is_causal(model))
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


def forbidden_output(config: PretrainedConfig) -> int | None:
    """Return the id that a causal LM trained to fill masks never predicts: its mask token.

    Its head is often tied to the embedding, whose mask row the states of masked tokens resemble.
    Other families have learned not to predict the mask, and a causal LM knows no mask.
    """
    if config.model_type not in DECODERS or attention_pattern(config) == "causal":
        return None
    return getattr(config, "mask_token_id", None)


def _is_causal(model: PreTrainedModel) -> bool:
    return attention_pattern(model.config) == "causal"


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


class Predictor:
    """Logits of masked tokens, on the model's device, without gradients.

    Rows are padded on their right; place i of a result predicts token i.
    """

    def __init__(self, model: nn.Module):
        self._model = unwrapped(model)
        self._backbone = BACKBONES[self._model.config.model_type]
        # places from a token to the state that predicts it
        self.shift = logit_shift(self._model.config)
        self.causal = _is_causal(self._model)
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
