"""Keys and values that a denoising step keeps from an earlier one (Fast-dLLM, arXiv 2505.22618).

With full attention they are an approximation: a kept key does not know the tokens revealed since.
`prompt` keeps those of the prompt for the whole answer; `prefix` keeps what is before the block, and
`dual` all but the block, both refreshed as each block begins.

`exact` is that of causal and of block models, whose tokens depend on nothing behind their block: it
keeps what is before the block, and computes each block once more, clean, as the next one begins.

S canvases of a forward, Q queried places, T places of the longest canvas, G heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class KeyValues:
    """Keys and values of every attention layer, one slot a canvas."""

    def __init__(self, slots: int):
        self._slots = slots
        self._kept: dict[object, tuple[Tensor, Tensor]] = {}  # by layer: [slots, T + 1, G, E]

    def update(
        self, layer: object, key: Tensor, value: Tensor, window: QueriedColumns
    ) -> tuple[Tensor, Tensor]:
        """Keep the keys and values [S, G, Q, E] of the queried places; return all, [S, G, T, E]."""
        width = window.real.shape[1]
        both = self._kept.get(layer)
        if both is None or both[0].shape[1] <= width:
            both = tuple(
                self._wider(index, layer, like, width) for index, like in enumerate((key, value))
            )
            self._kept[layer] = both  # pyright: ignore[reportArgumentType]
        found: list[Tensor] = []
        for kept, new in zip(self._kept[layer], (key, value), strict=True):
            # Padding behind a canvas is written to the last column, which nobody reads.
            columns = torch.where(window.queried, window.columns, kept.shape[1] - 1)
            kept[window.slots[:, None], columns] = new.transpose(1, 2)
            every = window.slots.shape[0] == self._slots
            found.append((kept if every else kept[window.slots])[:, :width].transpose(1, 2))
        return found[0], found[1]

    def _wider(self, index: int, layer: object, like: Tensor, width: int) -> Tensor:
        G, E = like.shape[1], like.shape[3]
        room = -(-(width + 1) // 64) * 64  # grows seldom
        kept = like.new_zeros(self._slots, room, G, E)
        if layer in self._kept:
            old = self._kept[layer][index]
            kept[:, : old.shape[1] - 1] = old[:, :-1]
        return kept


class QueriedColumns:
    """Columns that one cached forward queries, in place of a flat batch's `Segments`."""

    def __init__(
        self,
        cache: KeyValues,
        slots: Tensor,
        columns: Tensor,
        queried: Tensor,
        real: Tensor,
        sees: Tensor | None = None,
    ):
        """Slots [S] ascending, columns [S, Q], queried [S, Q] and real [S, T] bool.

        `sees` [S, Q, T]: the places that each column attends to; without, all real ones.
        """
        self.cache, self.slots = cache, slots
        self.columns, self.queried, self.real = columns, queried, real
        self._sees = sees
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        reach: int | None,
        scaling: float | None,
    ) -> tuple[Tensor, None]:
        """Return the attention [S, Q, H, E] of query [S, H, Q, E] over kept and new keys."""
        key, value = self.cache.update(module, key, value, self)
        return sdpa_attention_forward(module, query, key, value, self._mask(reach), scaling=scaling)

    def _mask(self, reach: int | None) -> Tensor:
        """Return bool [S, 1, Q, T]: the keys that are seen, real and at most `reach` away."""
        if reach not in self._masks:
            S, T = self.real.shape
            sees = self.real[:, None, :].expand(S, self.columns.shape[1], T)
            if self._sees is not None:
                sees = sees & self._sees
            if reach is not None:
                places = torch.arange(T, device=sees.device)
                sees = sees & ((self.columns[..., None] - places).abs() <= reach)
            self._masks[reach] = sees[:, None]
        return self._masks[reach]
