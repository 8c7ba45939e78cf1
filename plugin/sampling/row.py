"""One canvas while it is denoised: its blocks, its masked places, its random draws.

A row knows nothing of its neighbours, so that a batch of 8 gives the answers of 8 single calls.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base.grid import block_begin
from ..config.sampler import SamplerSettings
from .request import DenoisingStep, Request, Sample, Vocabulary
from .strategies import Draws, draws_anything, guess, reveal


class CanvasRow:
    """A request's canvas [T], denoised block by block, left to right."""

    def __init__(
        self, number: int, request: Request, vocabulary: Vocabulary, settings: SamplerSettings
    ):
        self.number, self.request = number, request
        self._settings, self._vocabulary = settings, vocabulary
        assert request.holes is None or not settings.grid, "a block sees nothing behind it"
        if request.holes is None:
            most = settings.max_new_tokens
            most = most if request.longest is None else min(most, request.longest)
            self._holes = request.ids.size + np.arange(most)
            new = 0 if settings.grow else most
            masks = np.full(new, vocabulary.mask_id)
            self.canvas: NDArray[np.int64] = np.concatenate([request.ids.astype(np.int64), masks])
        else:
            self._holes = request.holes
            self.canvas = request.ids.astype(np.int64)
            self.canvas[request.holes] = vocabulary.mask_id
        self._draws: Draws | None = None
        self._before, self._begun = 0, 0  # holes of the blocks before this one, and with it
        # First place whose tokens may differ from those of the last forward of the block before.
        self.changed = 0
        self.block, self.step, self.nfe = -1, 0, 0
        self.masked = self._holes[:0]  # places of this block still to be revealed
        self.fresh = False  # a block begins with the next step
        self.done = False
        self._next_block()

    @property
    def window(self) -> tuple[int, int]:
        """Return the first place of the block and the one after its last."""
        places = self._holes[self._before : self._begun]
        return int(places[0]), int(places[-1]) + 1

    @property
    def begin(self) -> int:
        """Return the place at which the block begins; on the grid it may be in the prompt."""
        first, size = self.window[0], self._settings.block_length
        return block_begin(first, size) if self._settings.grid else first

    def take(self, logits: Tensor) -> DenoisingStep:
        """Reveal tokens from the logits [M, V] of the masked places, and move on."""
        forbidden = [self._vocabulary.mask_id]
        if self.request.holes is not None:  # an end inside a text would end nothing
            forbidden += self._vocabulary.end_ids
        logits[:, forbidden] = -torch.inf
        if self._vocabulary.size is not None:
            logits[:, self._vocabulary.size :] = -torch.inf
        if self._draws is None and draws_anything(self._settings):
            self._draws = Draws((self._settings.seed, *self.request.draw), logits.device)
        found = guess(logits, self._settings, self._draws)
        chosen = reveal(found, self._steps_left, self._settings, self._draws)
        places = self.masked[chosen]
        self.canvas[places] = found.tokens[chosen]
        start = self.request.start
        taken = DenoisingStep(
            self.step,
            self.block,
            tuple((places - start).tolist()),
            tuple(self.canvas[places].tolist()),
        )
        self.masked = np.delete(self.masked, chosen)
        self.step, self._steps_left, self.fresh = self.step + 1, self._steps_left - 1, False
        if not self.masked.size:
            self._next_block()
        return taken

    def answer(self) -> NDArray[np.int32]:
        """Return what stands behind the prompt, masks included."""
        return self.canvas[self.request.start :].astype(np.int32)

    def sample(self) -> Sample:
        """Return the answer of a row that is done, up to the end of its last block."""
        end = self.canvas.size if self.request.holes is not None else self.window[1]
        return Sample(self.canvas[self.request.start : end].astype(np.int32), self.step, self.nfe)

    def _next_block(self) -> None:
        """Begin the next block, or end after the last one or one that holds an end token."""
        if self._begun == self._holes.size or self._ended():
            self.done = True
            return
        self.changed = self.begin if self._begun else 0
        self.block += 1
        size, self._before = self._settings.block_length, self._begun
        if self._settings.grid:
            size -= int(self._holes[self._begun]) % size
        size = min(size, self._holes.size - self._begun)
        self.masked = self._holes[self._begun : self._begun + size]
        self._begun += size
        self._steps_left = min(self._settings.steps, size)
        self.fresh = True
        if self.request.holes is None and self._settings.grow:
            masks = np.full(size, self._vocabulary.mask_id)
            self.canvas = np.concatenate([self.canvas, masks])

    def _ended(self) -> bool:
        if self.request.holes is not None or not self._begun:
            return False
        written = self.canvas[self.request.start : self._holes[self._begun - 1] + 1]
        return bool(np.isin(written, self._vocabulary.end_ids).any())
