"""Where a step's time goes, and what share of the device's peak its useful work is.

Nothing here waits for the device inside a step: on CUDA the laps are events, read after the step's
one read.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import torch
from torch import nn

from .sharding import own_part

LAPS = ("load", "forward", "backward", "optimizer", "eval", "save")
CPU_LAPS = ("load", "eval", "save")  # work of the CPU, which the device's events would not see
PEAK_SIZE, PEAK_ROUNDS = 8192, 10


class Stopwatch:
    """Seconds by kind of work: `lap(kind)` books the time since the last lap."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._pending: list[
            tuple[str, torch.cuda.Event, torch.cuda.Event]
        ] = []  # laps that the device may not have reached
        self._mark: torch.cuda.Event | None = None
        self._last = 0.0
        self.seconds: dict[str, float] = dict.fromkeys(LAPS, 0.0)
        self.start()

    def start(self) -> None:
        """Begin a step: what came before belongs to nobody."""
        self._last = time.perf_counter()
        if self._cuda:
            self._mark = self._event()

    def lap(self, kind: str) -> None:
        now = time.perf_counter()
        if not self._cuda or kind in CPU_LAPS:
            self.seconds[kind] += now - self._last
        self._last = now
        if self._cuda:
            event, before = self._event(), self._mark
            if before is not None and kind not in CPU_LAPS:
                self._pending.append((kind, before, event))
            self._mark = event

    def settle(self) -> None:
        """Book the laps that the device has passed, without waiting for it. The update of a step is
        booked by the next one, which waits for it before it reads its own loss.
        """
        while self._pending and self._pending[0][2].query():
            kind, before, after = self._pending.pop(0)
            self.seconds[kind] += before.elapsed_time(after) / 1000

    def take(self) -> dict[str, float]:
        """Seconds since the last take, as `time/<kind>`."""
        taken = {f"time/{kind}": seconds for kind, seconds in self.seconds.items()}
        self.seconds = dict.fromkeys(LAPS, 0.0)
        return taken

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product on a CUDA device, measured now: the 100 % of
    MFU.
    """
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(PEAK_ROUNDS):
        left @ right
    end.record()
    end.synchronize()
    return PEAK_ROUNDS * 2 * PEAK_SIZE**3 / (start.elapsed_time(end) / 1000)


def peak_bytes(device: torch.device) -> int:
    """At the run's peak: of the GPU, or of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()


def resident_bytes() -> int:
    """The most that this process has held in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_by_category(
    module: nn.Module, optimizer: torch.optim.Optimizer, peak: int, baseline: int
) -> dict[str, int]:
    """Bytes this rank holds for weights, gradients and optimizer states; `rest` of the measured
    peak is activations and logits.
    """
    weights = [own_part(weight) for weight in module.parameters()]
    held = {
        "weights": _bytes(weights),
        "gradients": sum(
            weight.numel() * weight.element_size() for weight in weights if weight.requires_grad
        ),
        "optimizer": _bytes(
            [
                own_part(value)
                for state in optimizer.state.values()
                for value in state.values()
                if isinstance(value, torch.Tensor)
            ]
        ),
    }
    return {**held, "rest": max(0, peak - baseline - sum(held.values())), "peak": peak}


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    """What these tensors hold, a storage that several share (a table of 8-bit states, a tied head)
    counted once.
    """
    return sum(
        {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in tensors
        }.values()
    )
