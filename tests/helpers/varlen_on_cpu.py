"""Stand-in kernels of torch's varlen operator on a CPU, written out in float32.

torch has kernels for CUDA alone. With these two the operator itself, its fake and its autograd
formula run here, in eager mode and inside compiled layers. H heads, G of keys, E width of a head.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def register() -> None:
    """Register the kernels, once in a process: torch has no way back."""
    from torch.nn.attention import varlen

    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _scores(
    q: Tensor, k: Tensor, ends: Tensor, scale: float, window: list[int] | None, causal: bool
) -> Tensor:
    """Return masked scores [H, N, N] of q and k [N, H, E]; -1 in `window` means no limit."""
    places = torch.arange(q.shape[0])
    document = torch.searchsorted(ends[1:].contiguous(), places, right=True)
    sees = document[:, None] == document
    if window and window[0] >= 0:
        sees &= (places[:, None] - places).abs() <= window[0]
    if causal:
        sees &= places[:, None] >= places
    return (torch.einsum("qhe,khe->hqk", q, k) * scale).masked_fill(~sees, float("-inf"))


def _repeated(x: Tensor, heads: int) -> Tensor:
    return x.float().repeat_interleave(heads // x.shape[1], 1)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float = 1.0,
    window_size: list[int] | None = None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    heads = query.shape[1]
    k, v = _repeated(key, heads), _repeated(value, heads)
    scores = _scores(query.float(), k, cu_seq_q, scale, window_size, is_causal)
    mixed = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)
    state = torch.zeros(2, dtype=torch.uint64)
    return mixed.to(query.dtype).contiguous(), scores.logsumexp(-1), state


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float = 1.0,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, slope = query.shape[1], grad_out.float()
    q, k, v = query.float(), _repeated(key, heads), _repeated(value, heads)
    share = _scores(q, k, cu_seq_q, scale, window_size, is_causal).softmax(-1)  # [H, N, N]
    of_share = torch.einsum("qhe,khe->hqk", slope, v)
    of_scores = share * (of_share - (slope * out.float()).sum(-1).T[:, :, None]) * scale
    of_q = torch.einsum("hqk,khe->qhe", of_scores, k)
    of_k = torch.einsum("hqk,qhe->khe", of_scores, q)
    of_v = torch.einsum("hqk,qhe->khe", share, slope)
    return (
        of_q.to(query.dtype).contiguous(),
        of_k.unflatten(1, (key.shape[1], -1)).sum(2).to(key.dtype).contiguous(),
        of_v.unflatten(1, (value.shape[1], -1)).sum(2).to(value.dtype).contiguous(),
    )
