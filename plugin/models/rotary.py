"""Rotary position embedding (RoPE) in float32, as LLaDA and Dream use it.

This file is copied into the folder of a published model (code_files.py), so that it imports torch
alone. S documents (rows), T tokens of a row, H heads, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the half-rotation RoPE, each fp32 [S, T, E], for ids [S, T].

    Computed on every forward: `model.to(bfloat16)` would round a stored buffer, the meta device
    would lose it, and avoiding both costs more than T * E / 2 cosines.
    """
    exponents = (
        torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    )
    angles = position_ids[..., None].float() * theta**-exponents  # [S, T, E/2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [S, H, T, E] by its positions in fp32; return its own dtype. cos, sin [S, T, E]."""
    y = x.float()
    low, high = y.chunk(2, dim=-1)
    return (y * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]).to(x.dtype)


def positions_or_default(input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """Return position_ids [S, T], by default 0..T-1 in every row."""
    if position_ids is not None:
        return position_ids
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
