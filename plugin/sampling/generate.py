"""Denoising of canvases in batches; a finished row leaves and the next request takes its place.

Rows never see each other, and each moves from block to block when it is ready. S canvases of a
forward, Q queried places, T places of the longest canvas, M masked, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.sampler import SamplerSettings
from ..models.diffusion import Predict, Predictor
from .guidance import View, guided, views
from .kv_cache import KeyValues, QueriedColumns
from .request import OnStep, Request, Sample, Vocabulary
from .row import CanvasRow


def generate(
    predict: Predict,
    requests: Sequence[Request],
    vocabulary: Vocabulary,
    settings: SamplerSettings,
    on_step: OnStep | None = None,
) -> list[Sample]:
    """Answer all requests in one batch, in their order. See `stream`."""
    found = dict(stream(predict, requests, vocabulary, settings, len(requests), on_step))
    return [found[number] for number in range(len(requests))]


def stream(
    predict: Predict,
    requests: Iterable[Request],
    vocabulary: Vocabulary,
    settings: SamplerSettings,
    batch_size: int,
    on_step: OnStep | None = None,
) -> Iterator[tuple[int, Sample]]:
    """Yield (number of the request, its answer) as rows are finished.

    An answer is finished after the block that holds its first end token. At most `batch_size` rows
    are in a forward; neither this nor the order of requests changes an answer. A `settings.cache`
    needs a Predictor. A block model's attention has the blocks of the settings.
    """
    if isinstance(predict, Predictor):
        assert settings.grid == bool(predict.block), "block models alone write on the grid"
        predict = predict.with_blocks(settings.block_length) if settings.grid else predict
    waiting = enumerate(requests)
    slots: list[CanvasRow | None] = [None] * batch_size
    cache = _Cached(predict, batch_size, vocabulary, settings) if settings.cache != "none" else None
    while True:
        free = [slot for slot, row in enumerate(slots) if row is None]
        for slot, (number, request) in zip(free, islice(waiting, len(free)), strict=False):
            slots[slot] = CanvasRow(number, request, vocabulary, settings)
        active = [(slot, row) for slot, row in enumerate(slots) if row is not None]
        if not active:
            return
        for group in cache.groups(active) if cache else [active]:
            seen = [(slot, views(row, settings, vocabulary.mask_id)) for slot, row in group]
            logits = cache.forward(seen) if cache else _forward(predict, seen, vocabulary)
            for (slot, of_row), mine in zip(seen, logits, strict=True):
                row = of_row[0].row
                row.nfe += len(of_row)
                step = row.take(guided(mine, settings.cfg))
                if on_step:
                    on_step(row.number, step, row.answer())
                if row.done:
                    slots[slot] = None
                    yield row.number, row.sample()


def _forward(
    predict: Predict, seen: Sequence[tuple[int, list[View]]], vocabulary: Vocabulary
) -> list[list[Tensor]]:
    """Return the logits [M, V] of each row's views from one forward over complete canvases."""
    flat = [view for _, of_row in seen for view in of_row]
    ids, real = _padded([view.ids for view in flat], vocabulary.pad_id)
    places = [view.row.masked - view.shift for view in flat]
    return _split(predict(ids, real, _places(places)), places, seen)


class _Cached:
    """Forwards that query some columns of their canvases and keep keys and values of the rest."""

    def __init__(
        self, predict: Predict, slots: int, vocabulary: Vocabulary, settings: SamplerSettings
    ):
        assert isinstance(predict, Predictor), "a cache needs a model's own predictor"
        self._predict, self._vocabulary, self._settings = predict, vocabulary, settings
        self._views = 2 if settings.cfg else 1
        self._cache = KeyValues(slots * self._views)

    def groups(self, active: list[tuple[int, CanvasRow]]) -> list[list[tuple[int, CanvasRow]]]:
        """Return the rows that refresh their canvas and those that do not: one forward each.

        `exact` computes prompts on their own too, because they are much longer than blocks.
        """
        exact = self._settings.cache == "exact"
        kinds: dict[tuple[bool, bool], list[tuple[int, CanvasRow]]] = {}
        for slot, row in active:
            kind = self._refreshes(row), exact and row.step == 0
            kinds.setdefault(kind, []).append((slot, row))
        return [kinds[kind] for kind in sorted(kinds, reverse=True)]

    def _refreshes(self, row: CanvasRow) -> bool:
        return row.step == 0 if self._settings.cache == "prompt" else row.fresh

    def _query(self, row: CanvasRow) -> tuple[int, int]:
        """Return the columns that a step computes anew: the first, and the one after the last.

        A family that predicts from the state before computes that state too.
        """
        end, shift, (first, last) = row.canvas.size, self._predict.shift, row.window
        if self._settings.cache == "exact":
            begin = row.changed if row.fresh else row.begin
            # A causal model's last column is a mask that nothing depends on.
            return min(begin, first - shift), end - int(self._predict.causal)
        if self._refreshes(row):
            return 0, end
        if self._settings.cache == "prompt":
            return row.request.start - shift, end
        return first - shift, last if self._settings.cache == "dual" else end

    def forward(self, seen: Sequence[tuple[int, list[View]]]) -> list[list[Tensor]]:
        """Return the logits [M, V] of each row's views."""
        flat = [view for _, of_row in seen for view in of_row]
        slots = [slot * self._views + n for slot, of_row in seen for n in range(len(of_row))]
        columns: list[NDArray[np.int64]] = []
        for view in flat:
            first, end = (max(0, place - view.shift) for place in self._query(view.row))
            columns.append(np.arange(first, end))
        at, queried = _padded(columns, 0)
        ids, _ = _padded(
            [view.ids[mine] for view, mine in zip(flat, columns, strict=True)],
            self._vocabulary.pad_id,
        )
        _, real = _padded([view.ids for view in flat], 0)
        places = [
            view.row.masked - view.shift - mine[0] for view, mine in zip(flat, columns, strict=True)
        ]
        device = self._predict.device
        window = QueriedColumns(
            self._cache,
            torch.tensor(slots, device=device),
            at.to(device),
            queried.to(device),
            real.to(device),
            self._sees(flat, at, real.shape[1]),
        )
        return _split(self._predict.cached(ids, window, _places(places)), places, seen)

    def _sees(self, flat: Sequence[View], columns: Tensor, tokens: int) -> Tensor | None:
        """Return which places each column [S, Q] sees, [S, Q, T]; None for full attention."""
        if self._settings.cache != "exact":
            return None
        device = self._predict.device
        begin = torch.tensor([[view.row.begin] for view in flat], device=device)
        return self._predict.sees(begin, columns.to(device), tokens)


def _padded(rows: Sequence[NDArray[np.int64]], fill: int) -> tuple[Tensor, Tensor]:
    """Return rows of unequal length as [S, longest], padded on the right, and what is real."""
    longest = max(row.size for row in rows)
    ids = np.full((len(rows), longest), fill, dtype=np.int64)
    real = np.zeros((len(rows), longest), dtype=bool)
    for line, row in enumerate(rows):
        ids[line, : row.size] = row
        real[line, : row.size] = True
    return torch.from_numpy(ids), torch.from_numpy(real)


def _places(columns: Sequence[NDArray[np.int64]]) -> Tensor:
    """Return [M, 2]: the row and the column of each masked place."""
    lines = np.repeat(np.arange(len(columns)), [each.size for each in columns])
    return torch.from_numpy(np.stack([lines, np.concatenate(columns)], axis=1))


def _split(
    logits: Tensor, places: Sequence[NDArray[np.int64]], seen: Sequence[tuple[int, list[View]]]
) -> list[list[Tensor]]:
    parts = iter(logits.split([each.size for each in places]))
    return [list(islice(parts, len(of_row))) for _, of_row in seen]
