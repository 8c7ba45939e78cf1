"""The flat micro-batch that data hands to models.

S documents, N tokens, M masked tokens; no padding. Under block diffusion a document is a row: the
clean document, and behind it noisy copies of some of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Copies:
    """Additions of block diffusion to the tokens of a row; see `sees`."""

    copy: torch.Tensor  # [N] int64, 0 for the clean document, 1, 2, ... for a noisy copy
    # [N] int64: a token sees the clean tokens of its document at positions below its limit. That of
    # a noisy token is where its block begins, so that it names the block.
    limit: torch.Tensor
    source: torch.Tensor  # [M] int64, indices among the N tokens whose states predict

    def to(self, device: torch.device) -> Copies:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Copies:
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Copies:
        return Copies(change(self.copy), change(self.limit), change(self.source))


def sees(
    query_copy: torch.Tensor,
    query_limit: torch.Tensor,
    key_copy: torch.Tensor,
    key_limit: torch.Tensor,
    key_position: torch.Tensor,
) -> torch.Tensor:
    """Return which keys a query of the same document sees, for arguments that broadcast.

    Clean keys below its limit, and the noisy tokens of its own copy and block. The three masks of
    block diffusion (Arriola et al. 2025, arXiv 2503.09573, section 3.3) are this one rule.
    """
    own = (query_copy == key_copy) & (query_limit == key_limit)
    return ((key_copy == 0) & (key_position < query_limit)) | ((key_copy > 0) & own)


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end; document s holds the tokens cu_seqlens[s] : cu_seqlens[s + 1].

    Models that need a rectangle pad at their own border.
    """

    ids: torch.Tensor  # [N] int64, noised
    cu_seqlens: torch.Tensor  # [S + 1] int64
    position: torch.Tensor  # [N] int64, restarts at 0 in every document; a copy keeps its token's
    document: torch.Tensor  # [N] int64, index among the S documents
    masked: torch.Tensor  # [M] int64, indices among the N tokens
    target: torch.Tensor  # [M] int64, true ids of the masked tokens
    weight: torch.Tensor  # [M] float32
    longest: int  # tokens of the longest document, known without a device synchronisation
    copies: Copies | None = None  # of block diffusion
    # [M] float32: what a weight of 1 is where the loss divides by a document's length; 1 without
    unit: torch.Tensor | None = None

    @property
    def documents(self) -> int:
        """Return the number of documents, S."""
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device) -> Batch:
        """Copy every tensor to `device`, asynchronously where it can."""
        copies = self.copies.to(device) if self.copies else None
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), copies)

    def pinned(self) -> Batch:
        """Copy to page-locked memory, so that a copy to the GPU does not block the CPU."""
        return self._each(torch.Tensor.pin_memory, self.copies.pinned() if self.copies else None)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor], copies: Copies | None) -> Batch:
        changed = {
            f.name: change(getattr(self, f.name))
            for f in fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor)
        }
        return Batch(**changed, longest=self.longest, copies=copies)
