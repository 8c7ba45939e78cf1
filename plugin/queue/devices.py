"""Devices of jobs: which a job holds, and which jobs may start beside those that run."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from functools import cache

from ..config.params import Params
from ..parent.gpus import Gpu, list_gpus, resolve_gpus, visible_gpus
from ..parent.launch import count_processes

CPU = "cpu"


@cache
def _gpus() -> tuple[Gpu, ...]:
    """Ask the driver once: a library that is started again for each look takes 50 ms."""
    return tuple(list_gpus())


def visible_here() -> list[str]:
    """Return the names of the GPUs that a job started from this process would see."""
    return visible_gpus(os.environ, _gpus)


def device_set(stages: Sequence[Params], visible: Sequence[str]) -> list[str]:
    """Return the names of all devices that a job's stages use, in the order of `visible`.

    Raises JobError for GPUs that are not here.
    """
    found: set[str] = set()
    for params in stages:
        gpus = resolve_gpus(params, visible)
        found |= set(gpus[: count_processes(params, gpus)]) or {CPU}
    return [name for name in (CPU, *visible) if name in found]


def shown_devices(names: Sequence[str], visible: Sequence[str]) -> str:
    """Return `cpu`, `all`, or positions among the visible GPUs: `0,2`."""
    if list(names) == list(visible):
        return "all"
    return ",".join(CPU if name == CPU else str(visible.index(name)) for name in names)


def startable(waiting: Iterable[tuple[str, Collection[str]]], busy: Collection[str]) -> list[str]:
    """Return the names of the waiting jobs, each with its devices, that may start now.

    A job whose devices overlap those of an earlier waiting job waits for it: a job for all GPUs
    would never find them free if later ones for a single GPU could overtake it.
    """
    taken, found = set(busy), []
    for name, devices in waiting:
        if not taken & set(devices):
            found.append(name)
        taken |= set(devices)
    return found
