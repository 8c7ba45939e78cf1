"""Rotary tables, visibility and Dream's one-token shift, shared by LLaDA and Dream.

This file, llada.py and dream.py import torch, transformers and one another alone: publish.py copies
them into the folder of a model that plain transformers is to load.

Shapes: S documents (rows), T tokens of a row, D width, H heads, E = D / H width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask

# our attention over the documents of a flat batch, where the plugin is: attention.py
DOCUMENTS = "documents"
_BY_MASK = ("eager", "sdpa", DOCUMENTS)


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the half-rotation RoPE, each fp32 [S, T, E], for position_ids [S, T].

    Computed afresh on every forward: a stored buffer is rounded by `model.to(bfloat16)`, lost on
    the meta device, and the trouble of keeping it costs more than T * E / 2 cosines.
    """
    exponents = (
        torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    )
    angles = position_ids[..., None].float() * theta**-exponents  # [S, T, E/2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [S, H, T, E] turned by its position in fp32 and given back in its own dtype; cos, sin fp32
    [S, T, E].
    """
    y = x.float()
    low, high = y.chunk(2, dim=-1)
    return (y * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]).to(x.dtype)


def positions(input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """position_ids [S, T], by default 0..T-1 in every row."""
    if position_ids is not None:
        return position_ids
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)


def visible(attention_mask: Tensor) -> Tensor:
    """Boolean form of a mask, True = may be seen: [S, T] marks real tokens, [S, 1, T, T] pairs
    (query, key).

    A floating 4-D mask is additive: 0 for a pair that sees, negative (-inf, the dtype's minimum,
    the old -1e4) for one that does not. It says nothing else: a graded bias is not supported.
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
    """The mask in the form that the attention function named in the config takes; what it does not
    forbid is visible.

    Args: hidden [S, T, D]; attention_mask [S, T] (1 = real) or [S, 1, T, T] (boolean or additive),
    None = no padding. Returns: None, or [S, 1, T, T], boolean for sdpa and `documents`, additive
    for eager; other functions get transformers' own form. Raises: ValueError for a 4-D mask where
    the attention function takes none. Every query sees at least one key: a softmax over an empty
    row is NaN or, with finite minima, sees everything. No value is read back from the device, so a
    training step does not wait here.
    """
    implementation = config._attn_implementation
    if attention_mask is not None and implementation not in _BY_MASK:
        if attention_mask.dim() == 4:
            raise ValueError(
                f"attn_implementation: expected eager or sdpa for a 4-D mask, got {implementation}."
            )
        return create_bidirectional_mask(config, hidden, attention_mask)
    if attention_mask is None:
        return (
            None if implementation in _BY_MASK else create_bidirectional_mask(config, hidden, None)
        )
    T = hidden.shape[1]
    sees = visible(attention_mask)
    if sees.dim() == 2:  # a row without one real token sees all its padding
        sees = (sees | ~sees.any(-1, keepdim=True))[:, None, None].expand(-1, 1, T, T)
    else:  # a query that sees nothing sees itself
        itself = torch.eye(T, dtype=torch.bool, device=sees.device)
        sees = sees | (itself & ~sees.any(-1, keepdim=True))
    if implementation != "eager":
        return sees
    return torch.zeros_like(sees, dtype=hidden.dtype).masked_fill(
        ~sees, torch.finfo(hidden.dtype).min
    )


def first_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Bool [S, T]: tokens whose left neighbour is not of their document (row start, after padding,
    after another).
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
        itself = pairs.diagonal(dim1=1, dim2=2)[
            :, 1:
        ]  # padding sees not even itself; it stays plain shifted
        first[:, 1:] = itself & ~pairs.diagonal(offset=-1, dim1=1, dim2=2)
    return first


def shift_right(hidden: Tensor, first: Tensor) -> Tensor:
    """hidden [S, T, D] moved so that row i holds what predicts token i, i.e. state i-1; first
    tokens keep their own.

    Source: Dream's generation code, cat([logits[:, :1], logits[:, :-1]], 1); the rule for `first`
    [S, T] extends it to left padding and packed rows, where the plain form would predict a
    document's first token from another document.
    """
    moved = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    return torch.where(first[..., None], hidden, moved)


def refused(config: PretrainedConfig, honoured: dict[str, tuple[object, ...]]) -> list[str]:
    """`name=value` of each config field whose value is none of the honoured ones; an absent or null
    field is fine.
    """
    fields = config.to_dict()
    return [
        f"{name}={fields[name]!r}"
        for name, values in honoured.items()
        if fields.get(name) is not None and fields[name] not in values
    ]
