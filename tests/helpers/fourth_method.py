"""A fourth method, added and trained by a separate program: a row, an objective, nothing else.

Parameters are made of the rows when they are imported, so the row comes before those imports.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from plugin.config.methods import METHODS, Method
from plugin.objectives import OBJECTIVES
from plugin.objectives.masked import Objective

METHODS["squared"] = Method(
    name="squared", summary="each document's nll, squared", families=("modernbert",), norm="batch"
)
OBJECTIVES["squared"] = Objective(
    method="squared",
    weight=lambda params: lambda hidden, levels, factor: np.ones(hidden.size),
    loss=lambda sums: sums.weighted.square().sum(),
)


def train(base: Path, folder: Path, pairs: list[tuple[str, str]]) -> str:
    """Train the base for a few steps with everything masked: what parse, rules and loop make of it.

    Returns JSON: the method that parse accepted, losses, supervised tokens of each document.
    """
    from helpers.overfit_cells import run

    from plugin.config.parse import parse

    job = {"training_method": "squared", "dataset_name": "d", "model_name": str(base)}
    noise = {"t_min": 0.999, "mask_count": "exact", "eos_policy": "single", "batch_size": 3}
    done = run(folder, "squared", base, pairs, train_steps=15, learning_rate=0.05, **noise)
    train = done.prepared.train
    supervised = [int(train[index].supervised.sum()) for index in range(len(train))]
    accepted = parse(job).params.training_method
    return json.dumps({"method": accepted, "losses": done.losses, "supervised": supervised})
