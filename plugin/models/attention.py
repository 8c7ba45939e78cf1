"""Attention that keeps the documents of a flat batch apart.

transformers' own backends silently attend across documents: they ignore restarting positions, and
sdpa ignores cumulative lengths. This one is registered with transformers under the name
`documents`. A packed forward passes a `Segments` by keyword through the model to every attention
layer, so that a recomputed layer sees the same one and models share no state. Without `Segments`
the name means plain sdpa with its padding mask, as sampling needs.

Shapes: S documents, N tokens of the flat batch, T tokens of one document, H heads (G of them for
keys), E width of a head.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch without it: see why_no_varlen
    varlen_attn = None

from ..batch import Batch, Copies, sees
from .decoders.flex_attention import HALF, NARROWEST, WIDEST, flex, kernel_dtype
from .masks import DOCUMENTS as NAME


@dataclass(frozen=True, eq=False, kw_only=True)
class Segments:
    """The documents of a flat batch, in the form that its backend reads."""

    backend: str  # loop, varlen, dense or flex
    cu_seqlens: Tensor  # [S + 1] int32
    document: Tensor  # [N]
    longest: int
    # loop alone, since reading lengths waits for the device: (documents, T) of equal neighbours
    runs: tuple[tuple[int, int], ...]
    causal: bool = False  # a token sees those before it and itself
    # of block diffusion: documents are rows with noisy copies, whose tokens see what batch.sees says
    copies: Copies | None = None
    position: Tensor | None = None  # [N] with copies

    @staticmethod
    def of(batch: Batch, backend: str, *, causal: bool = False) -> Segments:
        """Return the segments of a batch for a backend."""
        ends = batch.cu_seqlens.tolist() if backend == "loop" else []
        lengths = [end - start for start, end in pairwise(ends)]
        runs = tuple((len(list(same)), length) for length, same in groupby(lengths))
        return Segments(
            backend=backend,
            cu_seqlens=batch.cu_seqlens.int(),
            document=batch.document,
            longest=batch.longest,
            runs=runs,
            causal=causal,
            copies=batch.copies,
            position=batch.position if batch.copies else None,
        )

    @property
    def _masks(self) -> dict[tuple[int, int | None], Tensor]:
        return _MASKS.setdefault(self, {})

    def near(self, tokens: int, reach: int | None) -> Tensor | None:
        """Return bool [T, T], True for pairs at most `reach` apart; None if all pairs are."""
        if reach is None or tokens - 1 <= reach:
            return None
        if (tokens, reach) not in self._masks:
            self._masks[tokens, reach] = within(
                torch.arange(tokens, device=self.document.device), reach
            )
        return self._masks[tokens, reach]

    def band(self, tokens: int, reach: int) -> Tensor:
        """Return bool [n, B, B + 2 * reach]: the keys that each query of a block of B sees.

        Padding queries behind the end see all keys.
        """
        if (tokens, reach) not in self._masks:
            device = self.document.device
            first = torch.arange(0, tokens, BLOCK, device=device)[:, None]
            ahead = torch.arange(BLOCK + 2 * reach, device=device) - reach
            near = (torch.arange(BLOCK, device=device)[:, None] - ahead).abs() <= reach
            real = (first + ahead >= 0) & (first + ahead < tokens)
            sees = near & real[:, None, :]
            self._masks[tokens, reach] = sees | ~sees.any(-1, keepdim=True)
        return self._masks[tokens, reach]

    def seen(self, start: int, documents: int, tokens: int) -> Tensor:
        """Return bool [documents, 1, T, T]: the pairs of rows of T tokens that begin at `start`."""
        assert self.copies is not None
        assert self.position is not None
        key = (start, tokens)
        if key not in self._masks:
            rows = slice(start, start + documents * tokens)
            copy, limit, position = (
                each[rows].unflatten(0, (documents, tokens))
                for each in (self.copies.copy, self.copies.limit, self.position)
            )
            self._masks[key] = sees(
                copy[:, :, None],
                limit[:, :, None],
                copy[:, None],
                limit[:, None],
                position[:, None],
            )[:, None]
        return self._masks[key]

    def together(self, reach: int | None) -> Tensor:
        """Return bool [N, N], True for pairs (query, key) of one document at most `reach` apart."""
        N = self.document.shape[0]
        if (N, reach) not in self._masks:
            same = self.document[:, None] == self.document
            # documents lie in order, so that what is before in the batch is before in the document
            same = same.tril() if self.causal else same
            self._masks[N, reach] = (
                same if reach is None else same & within(torch.arange(N, device=same.device), reach)
            )
        return self._masks[N, reach]


# Not kept inside Segments: compiled layers receive it, and torch 2.11's compiler would recompile
# them for every mask in it.
_MASKS: WeakKeyDictionary[Segments, dict[tuple[int, int | None], Tensor]] = WeakKeyDictionary()


class Attends(Protocol):
    """Attention of some columns of padded rows: a forward that keeps keys and values."""

    @property
    def columns(self) -> Tensor:
        """Return the place [S, Q] of each queried column in its row."""
        ...

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        reach: int | None,
        scaling: float | None,
    ) -> tuple[Tensor, None]:
        """Return the attention [S, Q, H, E] of query [S, H, Q, E]."""
        ...


def within(places: Tensor, reach: int) -> Tensor:
    """Return bool [T, T], True for pairs of `places` [T] at most `reach` apart."""
    return (places[:, None] - places).abs() <= reach


def document_attention(
    module: Any,
    query: Tensor,  # [1, H, N, E]
    key: Tensor,  # [1, G, N, E]
    value: Tensor,  # [1, G, N, E]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | Attends | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return attention [1, N, H, E] and no weights, as transformers' attention interface asks."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    assert attention_mask is None, "segments replace the mask"
    assert not dropout, "dropout is off in this product"
    # transformers passes `sliding_window` to windowed layers only. Its size is read from the config,
    # because the meaning of the argument has changed between releases.
    reach = None if others.get("sliding_window") is None else module.config.sliding_window
    if not isinstance(segments, Segments):
        return segments.attend(module, query, key, value, reach, scaling)
    assert not ((segments.causal or segments.copies) and reach), "no causal LM here has windows"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return BACKENDS[segments.backend](query, key, value, segments, reach, scale), None


AttentionInterface.register(NAME, document_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def loop(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, reach: int | None, scale: float
) -> Tensor:
    """Compute one sdpa for each run of documents of equal length, without waste; for a CPU."""
    groups = query.shape[1] // key.shape[1]
    sizes = [documents * T for documents, T in segments.runs]
    starts = accumulate(sizes, initial=0)
    # One split and not slices: the gradient of each slice is as long as the batch, and there may be
    # hundreds.
    pieces = zip(
        *(
            x[0].split(sizes, dim=1)
            for x in (query, repeat_kv(key, groups), repeat_kv(value, groups))
        ),
        strict=True,
    )
    parts: list[Tensor] = []
    for (documents, T), start, piece in zip(segments.runs, starts, pieces, strict=False):
        q, k, v = (x.unflatten(1, (documents, T)).transpose(0, 1) for x in piece)  # [., H, T, E]
        if reach is not None and T >= LONG:
            mixed = _windowed(q, k, v, segments.band(T, reach), reach, scale)
        else:
            mixed = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=(
                    segments.seen(start, documents, T)
                    if segments.copies
                    else segments.near(T, reach)
                ),
                is_causal=segments.causal,
                scale=scale,
            )
        parts.append(mixed.transpose(1, 2).flatten(0, 1))  # [documents * T, H, E]
    return torch.cat(parts)[None]


# Queries of a block, and the length from which blocks are faster than a mask of all pairs. Mask
# against blocks (reach 64, forward and backward): 3.5 and 4.8 ms at 256 tokens, 59 and 18 at 1,024,
# 3,955 and 156 at 8,192.
BLOCK, LONG = 128, 400


def _windowed(
    query: Tensor, key: Tensor, value: Tensor, band: Tensor, reach: int, scale: float
) -> Tensor:
    """Return sliding-window attention [S, H, T, E] in time linear in T.

    It is computed in blocks of queries, each with the keys within its reach.
    """
    S, _, T, _ = query.shape
    blocks, width = band.shape[0], band.shape[2]
    missing = blocks * BLOCK - T
    query = F.pad(query, (0, 0, 0, missing)).unflatten(2, (blocks, BLOCK))  # [S, H, n, B, E]
    near = (
        F.pad(x, (0, 0, reach, reach + missing)).unfold(2, width, BLOCK).transpose(-1, -2)
        for x in (key, value)
    )
    q, k, v = (
        x.transpose(1, 2).flatten(0, 1) for x in (query, *near)
    )  # [S * n, H, B or B + 2 * reach, E]
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=band.repeat(S, 1, 1)[:, None], scale=scale
    )
    return mixed.unflatten(0, (S, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :T]


def dense(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, reach: int | None, scale: float
) -> Tensor:
    """Compute one sdpa under a mask of all N * N pairs; for a GPU without a varlen kernel."""
    assert segments.copies is None, "no mask of all pairs of rows with copies"
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=segments.together(reach), scale=scale
    )
    return mixed.transpose(1, 2)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, reach: int | None, scale: float
) -> Tensor:
    """Compute torch's varlen_attn: flash attention over cumulative lengths, windows included.

    A registered operator with its backward, so that it becomes part of a compiled layer.
    """
    assert varlen_attn is not None
    assert segments.copies is None, "no cumulative lengths say what rows with copies see"
    dtype = kernel_dtype(value)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))  # [N, H or G, E]
    options: dict[str, Any] = {}
    if "enable_gqa" in VARLEN_OPTIONS:
        options["enable_gqa"] = True
    else:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    cu, longest = segments.cu_seqlens, segments.longest
    window = (-1, 0 if segments.causal else -1) if reach is None else (reach, reach)
    mixed = varlen_attn(
        q, k, v, cu, cu, longest, longest, scale=scale, window_size=window, **options
    )  # [N, H, E]
    return cast("Tensor", mixed)[None]


Backend = Callable[[Tensor, Tensor, Tensor, Segments, "int | None", float], Tensor]
BACKENDS: Mapping[str, Backend] = {"loop": loop, "dense": dense, "varlen": varlen, "flex": flex}
# The keywords of this torch's varlen_attn: 2.10 has neither scale nor windows, 2.11 no grouped
# heads. Read once, because a compiler cannot trace the reading.
VARLEN_OPTIONS = (
    frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn else frozenset()
)


def head_width(config: PretrainedConfig) -> int:
    """Return E, the width of a head."""
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def why_no_varlen(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Return the reason why varlen cannot run here, empty if it can."""
    if device.type != "cuda":
        return f"its kernels need CUDA, and this is a {device.type.upper()}"
    if dtype not in HALF:
        kind = str(dtype).removeprefix("torch.")
        return f"its kernels compute in half precision, and this run in {kind}"
    width = head_width(config)
    if width % 8 or width > 256:
        return f"its kernels need a head width that is a multiple of 8 up to 256, not {width}"
    if not {"scale", "window_size"} <= VARLEN_OPTIONS:
        return f"torch {torch.__version__} has none with windows"
    return _why_too_old(device)


def why_no_flex(config: PretrainedConfig, device: torch.device) -> str:
    """Return the reason why flex cannot run here, empty if it can, in every compute dtype."""
    if device.type != "cuda":
        return f"its kernels need CUDA, and this is a {device.type.upper()}"
    width = head_width(config)
    if not NARROWEST <= width <= WIDEST:
        return f"its kernels need a head width of {NARROWEST} to {WIDEST}, not {width}"
    if importlib.util.find_spec("triton") is None:
        return "triton, which compiles its kernels, is not installed"
    return _why_too_old(device)


def _why_too_old(device: torch.device) -> str:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is too old for its kernels"
    return ""
