"""The flat micro-batch that data hands to models.

S documents, N tokens, M masked tokens; no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end; document s holds the tokens cu_seqlens[s] : cu_seqlens[s + 1].

    Models that need a rectangle pad at their own border.
    """

    ids: torch.Tensor  # [N] int64, noised
    cu_seqlens: torch.Tensor  # [S + 1] int64
    position: torch.Tensor  # [N] int64, restarts at 0 in every document
    document: torch.Tensor  # [N] int64, index among the S documents
    masked: torch.Tensor  # [M] int64, indices among the N tokens
    target: torch.Tensor  # [M] int64, true ids of the masked tokens
    weight: torch.Tensor  # [M] float32
    longest: int  # tokens of the longest document, known without a device synchronisation

    @property
    def documents(self) -> int:
        """Return the number of documents, S."""
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device) -> Batch:
        """Copy every tensor to `device`, asynchronously where it can."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy to page-locked memory, so that a copy to the GPU does not block the CPU."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {
            f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "longest"
        }
        return Batch(**changed, longest=self.longest)
