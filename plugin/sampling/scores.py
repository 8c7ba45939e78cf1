"""Scores of masked tokens by a model: packed forwards, logits at masked tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..data.collate import lay_out
from ..models.backbones import output_projection, own_dtype, unwrapped
from ..models.diffusion import DiffusionModel
from ..models.head import TokenScores, token_scores
from .likelihood import Canvas, LikelihoodSettings, Scores


class ModelScores:
    """A `likelihood.Score` of a model, with the guidance of `settings`."""

    def __init__(self, module: DiffusionModel, settings: LikelihoodSettings, mask_id: int):
        self._module, self._settings, self._mask_id = module, settings, mask_id

    @torch.no_grad()
    def __call__(self, canvases: Sequence[Canvas]) -> list[Scores]:
        """Score the masked tokens of canvases in one forward, two views of each under guidance."""
        settings, views = self._settings, list(canvases)
        if settings.cfg:
            views += [unprompted(one, settings.cfg_prompt, self._mask_id) for one in canvases]
        model = unwrapped(self._module.model)
        batch = lay_out([one.ids for one in views], views).to(model.device)
        with own_dtype(model):
            states = self._module.masked_states(batch)
            count = sum(one.masked.size for one in canvases)
            found = token_scores(
                states[:count],
                output_projection(model),
                batch.target[:count],
                self._mask_id,
                states[count:] if settings.cfg else None,
                settings.cfg,
            )
        return _by_canvas(found, canvases)


def unprompted(canvas: Canvas, cfg_prompt: str, mask_id: int) -> Canvas:
    """Return a canvas whose context is masked, or dropped but for its first token.

    See guidance.views, which does the same to a row of the sampler.
    """
    start, noisy = canvas.start, canvas.noisy
    if cfg_prompt == "masked":
        hidden = noisy.copy()
        hidden[:start] = mask_id
        return Canvas(canvas.ids, hidden, canvas.masked, start)
    ids, kept = (np.concatenate([each[:1], each[start:]]) for each in (canvas.ids, noisy))
    return Canvas(ids, kept, canvas.masked - (start - 1), 1)


def _by_canvas(found: TokenScores, canvases: Sequence[Canvas]) -> list[Scores]:
    ends = np.cumsum([one.masked.size for one in canvases])[:-1]
    log_p, best = (each.double().cpu().numpy() for each in (found.log_p, found.best))
    parts = (np.split(each, ends) for each in (log_p, best, found.correct.cpu().numpy()))
    return [Scores(*each) for each in zip(*parts, strict=True)]
