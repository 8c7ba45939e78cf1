"""Hidden states of transformers' Qwen3, Qwen2 and Llama under any attention.

Their layers are called here with our mask and positions: a model's own forward would build a causal
mask, and take restarting positions for packed documents. S rows, T tokens of a row, N tokens of a
flat batch, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ...base.grid import block_begin, row_limit
from ...batch import sees
from ...run.facts import BlockFacts
from ..attention import Attends, Segments
from ..configuration import attention_pattern, block_facts, logit_shift
from ..masks import attention_bias


def encode(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return hidden states [S, T, D] of ids [S, T] under the attention of the configuration.

    `mask`: [S, T], which tokens are real, all of them without; or [S, T, T], the pairs that attend.
    """
    S, T = ids.shape
    if mask is None or mask.dim() == 2:
        pairs = pattern_pairs(model.config, T, ids.device).expand(S, T, T)
        pairs = pairs if mask is None else pairs & (mask != 0)[:, None]
    else:
        pairs = mask
    position = torch.arange(T, device=ids.device)[None]
    return _layers(model, ids, position, pairs[:, None], None)


def encode_flat(model: Any, ids: Tensor, position: Tensor, segments: Segments | Attends) -> Tensor:
    """Return hidden states [1, N, D] of a flat batch, or of queried columns [S, Q]."""
    return _layers(model, ids, position, None, segments)


def _layers(
    model: Any, ids: Tensor, position: Tensor, pairs: Tensor | None, segments: Any
) -> Tensor:
    decoder = model.model
    hidden = decoder.embed_tokens(ids)
    rotary = decoder.rotary_emb(hidden, position)
    bias = None if pairs is None else attention_bias(model.config, hidden, pairs)
    for layer in decoder.layers:
        hidden = layer(
            hidden,
            attention_mask=bias,
            position_ids=position,
            position_embeddings=rotary,
            segments=segments,
            is_causal=False,  # what a token sees is in the mask or the segments
        )
    return decoder.norm(hidden)


def pattern_pairs(config: PretrainedConfig, tokens: int, device: torch.device) -> Tensor:
    """Return bool [1, T, T]: the pairs that attend in a clean document of `tokens` tokens.

    Under `block` the last block may be noisy; see canvas_pairs for one in the middle.
    """
    place = torch.arange(tokens, device=device)[None]
    pattern, block = attention_pattern(config), block_facts(config)
    if block:
        return canvas_pairs(block, block_begin(place[:, -1:], block.size), place, tokens)
    if pattern == "causal":
        return place[:, None] <= place[..., None]
    return torch.ones(1, tokens, tokens, dtype=torch.bool, device=device)


def canvas_pairs(block: BlockFacts, begin: Tensor, columns: Tensor, tokens: int) -> Tensor:
    """Return bool [S, Q, T]: which places of a block model's canvas each of `columns` [S, Q] sees.

    Row s is noisy from place begin[s] [S, 1] on, where one of its blocks begins. Noisy blocks see
    themselves and the clean tokens, as in training.
    """

    def of(place: Tensor) -> tuple[Tensor, Tensor]:
        noisy, causal = (place >= begin).long(), block.clean_context == "causal"
        return noisy, row_limit(place, noisy, block.size, causal=causal)

    place = torch.arange(tokens, device=begin.device)[None]
    query, key = of(columns), of(place)
    return sees(
        query[0][..., None], query[1][..., None], key[0][:, None], key[1][:, None], place[:, None]
    )


def aligned_logits(model: PreTrainedModel, ids: Tensor) -> CausalLMOutput:
    """Return logits [S, T, V] whose place i predicts token i, under the configuration's attention.

    A first token under a shift is predicted from its own state.
    """
    hidden = encode(model, ids, None)
    if logit_shift(model.config):
        hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    head: Any = model.get_output_embeddings()
    return CausalLMOutput(logits=head(hidden))
