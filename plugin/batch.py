"""A laid-out micro-batch: what data hands to models.

S documents, N tokens, M masked tokens; flat, nothing padded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Batch:
    """Document s holds tokens cu_seqlens[s] : cu_seqlens[s + 1].

    Models that need a rectangle pad at their own border.
    """

    ids: torch.Tensor  # [N] int64, noised
    cu_seqlens: torch.Tensor  # [S + 1] int64
    position: torch.Tensor  # [N] int64, restarting at 0 in every document
    document: torch.Tensor  # [N] int64, which of the S documents
    masked: torch.Tensor  # [M] int64, places among the N
    target: torch.Tensor  # [M] int64, the true ids there
    weight: torch.Tensor  # [M] float32
    longest: int  # tokens of the longest document: known without asking the device

    @property
    def documents(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In page-locked memory, from where a copy to the GPU does not hold up the CPU."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {
            f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "longest"
        }
        return Batch(**changed, longest=self.longest)
