"""A model that is a function of the tokens it sees, so that a decode is worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch

from plugin.models.diffusion import Predict

from .tiny import VOCABULARY

Guess = Callable[
    [list[int], int], tuple[int, float]
]  # (visible row, place) -> (likeliest token, its logit)


def table(guess: Guess) -> Predict:
    """Return a model that is a function of the tokens that it sees, padding removed."""

    def predict(ids: torch.Tensor, real: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(places), VOCABULARY)
        for number, (row, column) in enumerate(places.tolist()):
            assert real[row, column]
            token, height = guess(ids[row][real[row]].tolist(), column)
            logits[number, token] = height
        return logits

    return predict
