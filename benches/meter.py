"""Cost of a piece of work: wall time, CPU time and peak memory of this process, on Linux."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spent:
    wall: float  # s
    cpu: float  # s, all threads
    peak: int  # bytes resident at most, everything that was there before included


def spent_by(work: Callable[[], object]) -> Spent:
    reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu, highest_resident())


def resident() -> int:
    """Return the bytes resident now."""
    return _status("VmRSS")


def highest_resident() -> int:
    """Return the most bytes resident since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Begin a new peak of resident memory; see proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def return_free_memory() -> None:
    """Return what the allocator keeps to the system, so that the next growth is seen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{field}:")
    )
    return 1024 * int(line.split()[1])


def matmul_peak() -> float:
    """Return the operations a CPU second of a square float32 product: what one core can do.

    It is measured in this run.
    """
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = min(spent_by(lambda: left @ right).cpu for _ in range(5))
    return 2 * size**3 / best
