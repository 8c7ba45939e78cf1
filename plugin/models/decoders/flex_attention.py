"""Attention of rows with noisy copies on a GPU: torch's FlexAttention over intervals of the row.

No dense mask is made. What batch.sees says is, in a row as data lays it out, two intervals of it
for each query: the clean tokens below its limit, and the noisy tokens of its own copy and block.
The kernel reads their ends from captured tensors, so that it is compiled once for batches of any
content and size: once for training and once for evaluation.

S documents (rows with their copies), N tokens of the flat batch, L places of the padded row, n of
its blocks; H heads (G of them for keys), E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

if TYPE_CHECKING:
    from ..attention import Segments

BLOCK = 128  # queries, and keys, of a block of the kernel's table
# The row is padded to a multiple of it. Whole blocks spare the kernel its code for ragged ends, and
# a row of several never has the one block for which the compiler makes code of its own. Padding
# attends to itself alone: of 16,384 tokens it costs a copy of queries, keys and values, 1 % of a step.
MULTIPLE = 1024
HALF = (torch.float16, torch.bfloat16)  # dtypes of flash attention
COMPILER = "inductor"  # torch.compile's backend; only tests have another
NARROWEST, WIDEST = 16, 256  # head widths of the kernels in torch/_inductor/kernel/flex


class Intervals(NamedTuple):
    """The places that each place of the row sees: two intervals, int32 [L] each, ends excluded."""

    begin: Tensor
    end: Tensor
    own_begin: Tensor
    own_end: Tensor

    @property
    def mask(self) -> Callable[..., Tensor]:
        """Return a function that says whether a query sees a key, as FlexAttention asks."""
        begin, end, own_begin, own_end = self

        def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return ((key >= begin[query]) & (key < end[query])) | (
                (key >= own_begin[query]) & (key < own_end[query])
            )

        return sees


def flex(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, reach: int | None, scale: float
) -> Tensor:
    """Compute compiled FlexAttention, [1, N, H, E]; grouped heads stay grouped.

    The backward pass keeps query, key, value, the output and float32 [1, H, L].
    """
    assert reach is None, "no model with windows has noisy copies"
    N = query.shape[2]
    blocks = block_mask(segments)
    dtype = kernel_dtype(value)
    missing = blocks.seq_lengths[0] - N
    q, k, v = (F.pad(x.to(dtype), (0, 0, 0, missing)) for x in (query, key, value))
    mixed = _kernel(COMPILER)(q, k, v, block_mask=blocks, scale=scale, enable_gqa=True)
    return mixed[:, :, :N].transpose(1, 2)


def kernel_dtype(value: Tensor) -> torch.dtype:
    """Return the one dtype in which a kernel computes: that of autocast, or that of the values.

    Rotary tables promote queries and keys to float32. bitsandbytes' 4-bit layers, which autocast
    does not reach, return the dtype of their input: float32 behind a LayerNorm.
    """
    kind = value.device.type
    lifted = value.dtype not in HALF and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lifted else value.dtype


@cache
def _kernel(backend: str) -> Callable[..., Tensor]:
    """Return the compiled attention, for sizes that change.

    `fullgraph`, because what torch would run in its place makes the scores of all pairs.
    """
    kernel: Any = torch.compile(flex_attention, backend=backend, dynamic=True, fullgraph=True)
    return kernel


def block_mask(segments: Segments) -> BlockMask:
    """Return the mask of a micro-batch, made once for all its layers."""
    if segments not in _MASKS:
        with torch.no_grad():
            _MASKS[segments] = _table(seen(segments))
    return _MASKS[segments]


_MASKS: WeakKeyDictionary[Segments, BlockMask] = WeakKeyDictionary()


def seen(segments: Segments) -> Intervals:
    """Return what each place of the padded row sees.

    A row is the clean document, in order, and behind it its copies, the tokens of each block in
    one piece; without copies, a document. Nothing is read back from the device.
    """
    document, ends = segments.document, segments.cu_seqlens.long()
    N = document.shape[0]
    place = torch.arange(-(-N // MULTIPLE) * MULTIPLE, device=document.device)
    start = ends[document]
    copies = segments.copies
    if copies is None:
        stop = place[:N] + 1 if segments.causal else ends[document + 1]
        own_begin = own_end = torch.zeros_like(start)
    else:
        noisy = copies.copy > 0
        before = F.pad((~noisy).cumsum(0), (1, 0))  # [N + 1] clean tokens before each place
        clean = before[ends[1:]] - before[ends[:-1]]  # [S]
        stop = start + torch.minimum(copies.limit, clean[document])
        marks = torch.stack((document, copies.copy, copies.limit))
        changes = (marks[:, 1:] != marks[:, :-1]).any(0)
        piece = F.pad(changes.cumsum(0), (1, 0))  # [N] ascending
        own_begin = torch.searchsorted(piece, piece) * noisy
        own_end = torch.searchsorted(piece, piece, right=True) * noisy
    rest, none = place[N:], torch.zeros_like(place[N:])
    return Intervals(
        *(
            torch.cat(pair).int()
            for pair in ((start, rest), (stop, rest + 1), (own_begin, none), (own_end, none))
        )
    )


def _table(seen: Intervals) -> BlockMask:
    """Return which blocks of keys each block of queries sees, in part and in full.

    torch's create_block_mask would ask all L * L pairs; an interval is a few blocks. A block that
    only both intervals of a query fill together counts as seen in part: its pairs are asked.
    """
    touched = covered = None
    for begin, end in ((seen.begin, seen.end), (seen.own_begin, seen.own_end)):
        any_part = torch.where(end > begin, (end + BLOCK - 1) // BLOCK, begin // BLOCK)
        part = _queries(begin // BLOCK, any_part)
        whole = _queries((begin + BLOCK - 1) // BLOCK, end // BLOCK)
        touched = part if touched is None else touched + part
        covered = whole if covered is None else covered + whole
    assert touched is not None
    assert covered is not None
    full = covered == BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((touched > 0) & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=seen.mask
    )


def _queries(first: Tensor, last: Tensor) -> Tensor:
    """Return [n, n]: the number of queries of each block whose key blocks first .. last hold one.

    `first` and `last` [L] are block numbers, the last excluded; none at all if it is not above.
    """
    L = first.shape[0]
    n = L // BLOCK
    row = torch.arange(L, device=first.device) // BLOCK * (n + 1)
    one = (last > first).int()
    steps = torch.zeros(n * (n + 1), dtype=torch.int32, device=first.device)
    steps.index_add_(0, row + first, one).index_add_(0, row + last, -one)
    return steps.view(n, n + 1).cumsum(1)[:, :n]


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many are True in each row of [n, n], and their columns before the others."""
    columns = table.int().argsort(dim=-1, descending=True, stable=True)
    return table.sum(-1).int()[None, None], columns.int()[None, None]
