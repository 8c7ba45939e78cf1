"""Attention masks of padded rows, full or causal, and the one-token shift of logits.

This file is copied into the folder of a published model (code_files.py), so that it imports torch
and transformers alone. S documents (rows), T tokens of a row, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask

# name of the attention over packed documents, which attention.py registers inside the plugin
DOCUMENTS = "documents"
_BY_MASK = ("eager", "sdpa", DOCUMENTS)


def is_causal(config: PretrainedConfig) -> bool:
    """Return True for a model whose tokens see only those before them and themselves.

    Its configuration says `causal: true`; published ones have no such field.
    """
    return bool(getattr(config, "causal", False))


def visible(attention_mask: Tensor) -> Tensor:
    """Return the boolean form of a mask, True = visible.

    [S, T] marks real tokens, [S, 1, T, T] pairs (query, key). A floating 4-D mask is additive: 0
    for a visible pair, negative (-inf, the dtype's minimum, the old -1e4) for a hidden one. Graded
    biases are not supported.
    """
    if attention_mask.dim() not in (2, 4):
        raise ValueError(
            f"attention_mask: expected [S, T] or [S, 1, T, T], got {tuple(attention_mask.shape)}."
        )
    if attention_mask.dim() == 4 and attention_mask.is_floating_point():
        return attention_mask >= 0
    return attention_mask != 0


def attention_bias(
    config: PretrainedConfig, hidden: Tensor, attention_mask: Tensor | None
) -> Tensor | None:
    """Return the mask in the form that the config's attention function accepts.

    Args: hidden [S, T, D]; attention_mask [S, T] (1 = real) or [S, 1, T, T] (boolean or additive),
    None = no padding. Returns: None, or [S, 1, T, T], boolean for sdpa and `documents`, additive
    for eager; other functions get transformers' own form. Raises: ValueError for a 4-D mask if the
    attention function accepts none, and for a causal model with such a function. Every query sees
    at least one key: a softmax over an empty row is NaN or, with finite minima, sees everything. No
    value is read back from the device, so a training step does not wait here. Without a mask, sdpa
    and `documents` are causal by their own argument.
    """
    implementation, causal = config._attn_implementation, is_causal(config)
    if causal and implementation not in _BY_MASK:
        raise ValueError(
            f"attn_implementation: expected eager or sdpa for a causal model, got {implementation}."
        )
    if attention_mask is not None and implementation not in _BY_MASK:
        if attention_mask.dim() == 4:
            raise ValueError(
                f"attn_implementation: expected eager or sdpa for a 4-D mask, got {implementation}."
            )
        return create_bidirectional_mask(config, hidden, attention_mask)
    if attention_mask is None:
        if implementation not in _BY_MASK:
            return create_bidirectional_mask(config, hidden, None)
        if not (causal and implementation == "eager"):
            return None
        attention_mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    T = hidden.shape[1]
    sees = visible(attention_mask)
    if sees.dim() == 2:  # a row without a real token sees all its padding
        sees = (sees | ~sees.any(-1, keepdim=True))[:, None, None].expand(-1, 1, T, T)
    if causal:
        sees = sees & torch.ones(T, T, dtype=torch.bool, device=sees.device).tril()
    if causal or attention_mask.dim() == 4:  # a query that sees nothing sees itself
        itself = torch.eye(T, dtype=torch.bool, device=sees.device)
        sees = sees | (itself & ~sees.any(-1, keepdim=True))
    if implementation != "eager":
        return sees
    return torch.zeros_like(sees, dtype=hidden.dtype).masked_fill(
        ~sees, torch.finfo(hidden.dtype).min
    )


def first_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mark the first token of every document, bool [S, T].

    Its left neighbour is the row's start, padding or a token of another document.
    """
    S, T = input_ids.shape
    first = torch.zeros(S, T, dtype=torch.bool, device=input_ids.device)
    first[:, 0] = True
    if attention_mask is None:
        return first
    sees = visible(attention_mask)
    if sees.dim() == 2:
        first[:, 1:] = sees[:, 1:] & ~sees[:, :-1]
    else:
        pairs = sees[:, 0]
        # padding does not see itself either, so that it counts as no first token
        itself = pairs.diagonal(dim1=1, dim2=2)[:, 1:]
        first[:, 1:] = itself & ~pairs.diagonal(offset=-1, dim1=1, dim2=2)
    return first


def shift_right(hidden: Tensor, first: Tensor) -> Tensor:
    """Shift hidden [S, T, D] so that place i holds state i-1; first tokens keep their own state.

    Source: Dream's generation code, cat([logits[:, :1], logits[:, :-1]], 1). The rule for `first`
    [S, T] extends it to left padding and packed rows, where the plain form would predict a
    document's first token from another document.
    """
    moved = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    return torch.where(first[..., None], hidden, moved)
