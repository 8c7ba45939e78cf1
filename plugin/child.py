"""The environment in which one program of this product starts another: import path and threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def child_path(environ: Mapping[str, str]) -> dict[str, str]:
    """The PYTHONPATH that `python -P -m plugin.X` needs: our folder first, the user's behind it."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")]))}


def cpu_threads(environ: Mapping[str, str], processes: int = 1) -> dict[str, str]:
    """Return the threads of each of `processes` programs that compute on this machine's CPU, where a person has set no others.

    OpenMP's threads wait busily by default: as soon as anything else runs, two of them are slower than one, and a small model's
    thousands of short waits a hundred times slower.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: environ.get(name, value) for name, value in threads.items()}


def torch_program(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a torch program that is no rank of a run."""
    return {**environ, **child_path(environ), **cpu_threads(environ)}
