"""Classifier-free guidance: a row's canvas as the model sees it, with and without its prompt.

logits = without + (scale + 1) (with - without), as SMDM and LLaDA have it (Nie et al. 2024, arXiv
2410.18514): scale 0 is no guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config.sampler import SamplerSettings
from .row import CanvasRow


@dataclass(frozen=True)
class View:
    """One canvas of a row. `shift` is subtracted from a place of the row for its place here."""

    row: CanvasRow
    ids: NDArray[np.int64]  # [T]
    shift: int = 0


def views(row: CanvasRow, settings: SamplerSettings, mask_id: int) -> list[View]:
    """Return the canvas and, under guidance, the same without its prompt, if it has one.

    A dropped prompt leaves its first token: a family that predicts from the state before needs one.
    """
    full = View(row, row.canvas)
    start = row.request.start
    if not (settings.cfg and start):
        return [full]
    if settings.cfg_prompt == "masked":
        hidden = row.canvas.copy()
        hidden[:start] = mask_id
        return [full, View(row, hidden)]
    kept = min(1, start)
    ids = np.concatenate([row.canvas[:kept], row.canvas[start:]])
    return [full, View(row, ids, start - kept)]


def guided(logits: list[Tensor], scale: float) -> Tensor:
    """Return the logits [M, V] of a row from those of its views, float32."""
    if len(logits) == 1:
        return logits[0].float()
    conditional, unconditional = (each.float() for each in logits)
    return unconditional + (scale + 1) * (conditional - unconditional)
