"""State of a training run in a checkpoint: state.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from .record import Number, Record

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"  # next to it: the states of the optimizer
DRAWS = 2  # of this program; 1 was Python's hash of a tuple


class CheckpointState(Record):
    """The point at which a run stood when it was saved."""

    step: int = Field(strict=True)
    pass_: int
    position: int  # documents of that pass already seen; of a stream, rows
    seed: int = Field(strict=True)
    step_size: int = Field(strict=True)  # documents of a step
    window: dict[str, Any] = {}  # sums since the last log
    totals: dict[str, Any] = {}
    first_eval: dict[str, Number] = {}
    last_eval: dict[str, Number] = {}
    eval_loss: Number | None = None  # of an evaluation at this very step
    best_eval_loss: Number | None = None  # the lowest after step 0, and the evaluations since
    evals_since_best: int = 0
    scaler: dict[str, Any] = {}  # of fp16
    overflows: int = 0
    # The time of the run's first start, which its chat template writes; empty where it writes none.
    moment: str = ""
    draws: int = 1  # version of the rule that seeds dropout and rounding, see DRAWS


def read_state(checkpoint: Path) -> CheckpointState:
    """Return the state in `checkpoint`. Raises OSError, ValueError and RecursionError."""
    return CheckpointState.read(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
