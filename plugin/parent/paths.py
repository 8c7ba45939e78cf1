"""Paths of a job: its inputs in full, and its run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..base.errors import JobError, Problem
from ..base.files import is_encodable
from ..config.params import Params
from ..data.mixture import absolute_mixture
from ..data.sources import local_paths
from ..run.folder import RunFolder, local_path
from .launch import machine_dir
from .resume import ResumeTarget


def with_full_paths(params: Params) -> Params:
    """Return parameters with absolute paths.

    From any folder, run.json then repeats its run and an adapter finds its base. Raises JobError
    (exit 2).
    """
    if not is_encodable(os.getcwd()):
        raise JobError(
            Problem(
                "main",
                "a current folder whose name is UTF-8",
                os.getcwd(),
                "Start in another folder.",
            )
        )
    return params.model_copy(
        update={
            "model_name": local_path(params.model_name),
            "init_from": local_path(params.init_from),
            "tokenizer_name": local_path(params.tokenizer_name),
            "model_config_file": local_path(params.model_config_file),
            "start_from": local_path(params.start_from),
            "dataset_name": absolute_mixture(params.dataset_name),
        }
    )


def run_dir_of(params: Params, target: ResumeTarget) -> Path:
    """Return this machine's run folder: that of a resumed run, the chosen one, or a new name."""
    chosen = new_run_dir(params.run_dir, params.adaptor_name)
    return machine_dir(params, target.run_dir or chosen)


def new_run_dir(asked: str, adaptor_name: str) -> Path:
    """Return the run folder that was asked for, or one named after the moment and the adapter."""
    name = asked or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}-{adaptor_name}"
    return Path(name).expanduser().absolute()


def inputs_inside(params: Params, folder: RunFolder) -> list[Problem]:
    """List the inputs that lie in the run folder, which the run writes and may clear first.

    A resumed run may read what it has read so far.
    """
    before: Mapping[str, Any] = {}
    if params.resume != "false" and folder.path.is_dir() and not folder.problems(goes_on=True):
        with suppress(OSError, ValueError):
            before = folder.read_run().params
    root = folder.path.parent if params.machine_rank else folder.path
    fix = "Choose another run_dir, or move it."
    found: list[Problem] = []
    values = params.as_json()
    names = ("dataset_name", "model_name", "init_from", "tokenizer_name", "model_config")
    for name in (*names, "start_from"):
        value: str = values[name]
        if not value or before.get(name) == value:
            continue
        paths = local_paths(value) if name == "dataset_name" else [Path(value).expanduser()]
        if inside := next((path for path in paths if _lies_in(path, root)), None):
            found.append(
                Problem(name, "a path outside of run_dir", f"{inside}, which lies in {root}", fix)
            )
    return found


def _lies_in(path: Path, folder: Path) -> bool:
    """Tell whether a path lies in a folder, by its name or after links are followed."""
    return path.exists() and (
        path.absolute().is_relative_to(folder) or path.resolve().is_relative_to(folder.resolve())
    )
