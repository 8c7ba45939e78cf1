"""Families' models by their parts: encoder, transform and output projection.

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
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..base.errors import JobError, Problem
from ..config.families import DECODERS
from .attention import Attends, Segments, within
from .configuration import attention_pattern, longest_sequence
from .decoders import forward as decoder
from .lora import has_adapter
from .masks import attention_bias


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


def forbidden_output(config: PretrainedConfig) -> int | None:
    """Return the id that a causal LM trained to fill masks never predicts: its mask token.

    Its head is often tied to the embedding, whose mask row the states of masked tokens resemble.
    Other families have learned not to predict the mask, and a causal LM knows no mask.
    """
    if config.model_type not in DECODERS or attention_pattern(config) == "causal":
        return None
    return getattr(config, "mask_token_id", None)


def attends_causally(model: PreTrainedModel) -> bool:
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
