"""Causal objective: every supervised token is predicted from the tokens before it, with weight 1.

The baseline of the scaling laws for masked diffusion (SMDM, arXiv 2410.18514). Nothing is masked;
its models attend from left to right (models/masks.py), and state i - 1 predicts token i. T tokens
of a document.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .answers import Item
from .masked import (
    Corruption,
    Loss,
    Objective,
    WeightFunction,
    WholeDocuments,
    corrupt,
    evenly,
)
from .noise import Levels, Noise


def weight_one(_params: object) -> WeightFunction:
    """Return the weight function of a job whose tokens weigh 1 each."""
    return evenly


def next_tokens(item: Item, _levels: Levels, noise: Noise, loss: Loss) -> list[Corruption]:
    """Return the document as it is, with every supervised token but the first to be predicted.

    No token precedes the first one. The noise level is 0, at which an evaluation reports its loss.
    """
    learned: NDArray[np.bool_] = item.learned & (np.arange(item.ids.size) > 0)
    level = Levels.of(noise.schedule, [0.0], [item.ids.size])
    shown = replace(item, supervised=learned)
    predicted = corrupt(shown, learned, [1.0], level, noise=noise, loss=loss)
    return [replace(predicted, noisy=item.ids)]


def as_they_are(_params: object) -> WholeDocuments:
    """Return the noising of a job whose documents are not noised."""
    return WholeDocuments(next_tokens)


OBJECTIVE = Objective(method="causal", weight=weight_one, noising=as_they_are)
