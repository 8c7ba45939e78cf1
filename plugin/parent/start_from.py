"""Start of a run from a checkpoint of any run: the folder that `start_from` names, and its checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..base.digests import why_broken
from ..base.errors import JobError, Problem
from ..base.files import open_plain
from ..config.params import Params
from ..run.folder import RunFolder
from ..run.stages_file import newest_stage
from ..run.state import OPTIMIZER, STATE
from .resume import why_stateless

_MOST_HEADER = 1 << 27  # bytes of the header of a safetensors file


def with_checkpoint(params: Params, say: Callable[[str], None]) -> tuple[Params, list[Problem]]:
    """Return parameters whose `start_from` is one checkpoint, and the problems of it.

    A run folder stands for its newest intact checkpoint; broken ones are logged and skipped.
    run.json records the checkpoint itself, because the run in that folder may continue.
    """
    if not params.start_from:
        return params, []
    try:
        checkpoint = _checkpoint(Path(params.start_from), say)
        _check_optimizer(checkpoint, params.optim)
    except JobError as error:
        return params, list(error.problems)
    return params.model_copy(update={"start_from": str(checkpoint)}), []


def _checkpoint(given: Path, say: Callable[[str], None]) -> Path:
    """Return the intact checkpoint of a full model that a path names. Raises JobError (exit 2)."""
    if not given.is_dir():
        raise _refused("a run folder or a checkpoint of one", f"{given}, which is no folder")
    given = newest_stage(given) or given
    of_run = not (given / STATE).is_file() and (given / "run.json").is_file()
    candidates = RunFolder(given).checkpoints()[::-1] if of_run else [given]
    reason = "it has no checkpoint"
    for path in candidates:
        reason = _why_unusable(path)
        if not reason:
            return path
        if of_run:
            say(f"start_from: {path.name} is skipped: {reason}")
    fix = "A folder with weights alone is a model_name."
    raise _refused("an intact checkpoint with its optimizer", f"{given}: {reason}", fix)


def _why_unusable(checkpoint: Path) -> str:
    if (checkpoint / "adapter_config.json").is_file():
        return "it holds an adapter, not a full model; main.py fuse makes a model_name of it"
    if not (checkpoint / OPTIMIZER).is_file():
        return f"{OPTIMIZER} is missing"
    return why_broken(checkpoint) or why_stateless(checkpoint)


def _check_optimizer(checkpoint: Path, kind: str) -> None:
    """Raise JobError (exit 2) if the states in a checkpoint are those of another optimizer."""
    try:
        saved = saved_optimizer(checkpoint / OPTIMIZER)
    except (OSError, ValueError, RecursionError) as error:
        raise _refused("a readable optimizer", f"{checkpoint / OPTIMIZER}: {error}") from error
    if saved not in (kind, ""):
        got = f"{kind}, where {checkpoint} holds states of {saved}"
        fix = f"Set optim {saved}, or name the checkpoint as model_name to start with a new optimizer."
        raise JobError(Problem("optim", f"{saved} with this start_from", got, fix))


def saved_optimizer(file: Path) -> str:
    """Return the value of `optim` that a file of optimizer states was written under.

    Empty for a file without states, of a run that stopped before its first update. The names in
    the header tell: 8-bit states are `state1` and `state2`. Raises OSError and ValueError.
    """
    with open(file, "rb", opener=open_plain) as content:
        size = int.from_bytes(content.read(8), "little")
        if size > _MOST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        names: list[str] = list(json.loads(content.read(size)))
    kinds = {name.rpartition(".")[2] for name in names}
    if "state1" in kinds:
        return "adamw_8bit"
    return "adamw" if "exp_avg" in kinds else ""


def _refused(expected: str, got: str, fix: str = "") -> JobError:
    return JobError(Problem("start_from", expected, got, fix))
