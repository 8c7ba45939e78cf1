"""Meters of a run: sums between logs, time and memory by kind of work, measured peak throughput.

No function waits for the device inside a step: on CUDA the laps are events, which are read after
the step's only read of the device.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..models.flops import FlopCount
from .sharding import own_part

LAPS = ("load", "forward", "backward", "optimizer", "eval", "save")
CPU_LAPS = ("load", "eval", "save")  # work on the CPU, which events of the device do not measure
PEAK_SIZE, PEAK_ROUNDS = 8192, 10


class Stopwatch:
    """Seconds by kind of work: `lap(kind)` adds the time since the last lap."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        # laps that the device may not have finished
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._mark: torch.cuda.Event | None = None
        self._last = 0.0
        self.seconds: dict[str, float] = dict.fromkeys(LAPS, 0.0)
        self.start()

    def start(self) -> None:
        """Begin a step: the time since the last lap belongs to no kind."""
        self._last = time.perf_counter()
        if self._cuda:
            self._mark = self._event()

    def lap(self, kind: str) -> None:
        """Add the time since the last lap, or since `start`, to `kind`."""
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
        """Add the laps that the device has finished, without waiting for it.

        The update of a step is added in the next step, which reads its own loss only after it.
        """
        while self._pending and self._pending[0][2].query():
            kind, before, after = self._pending.pop(0)
            self.seconds[kind] += before.elapsed_time(after) / 1000

    def take(self) -> dict[str, float]:
        """Return the seconds since the last `take` as `time/<kind>`, and begin anew."""
        taken = {f"time/{kind}": seconds for kind, seconds in self.seconds.items()}
        self.seconds = dict.fromkeys(LAPS, 0.0)
        return taken

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class Meters:
    """Instruments of a run."""

    watch: Stopwatch
    flops: FlopCount
    peak: float = 0.0  # operations a second of all devices together; 0 where it was not measured


@dataclass
class StepSums:
    """Sums over steps: tokens by kind, operations, seconds, steps without an update."""

    tokens: int = 0
    supervised: int = 0
    cut: int = 0
    fill: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    skipped: int = 0


@dataclass
class Window(StepSums):
    """Sums since the last log."""

    loss: float = 0.0
    steps: int = 0
    correct: float = 0.0
    masked: int = 0

    def metrics(
        self, learning_rate: float, grad_norm: float, meters: Meters, size: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the metrics of these steps; `size`: of the run and of its last step."""
        seconds = max(self.seconds, 1e-9)
        mfu = {"mfu": self.flops / seconds / meters.peak} if meters.peak else {}
        return {
            "loss": self.loss / max(1, self.steps),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "masked_accuracy": self.correct / max(1, self.masked),
            "tokens_per_s": self.tokens / seconds,
            "supervised_tokens_per_s": self.supervised / seconds,
            "cut_share": self.cut
            / max(1, self.cut + self.supervised - self.fill),  # of answer tokens, see Step.cut
            "fill_share": self.fill
            / max(1, self.fill + self.tokens),  # end tokens added, as a share of all tokens
            "skipped_steps": float(self.skipped),
            **size,
            **mfu,
            # time/<kind>: to TensorBoard and progress.json, which nobody compares
            **meters.watch.take(),
        }


@dataclass
class Totals(StepSums):
    """Sums over the full run, for the throughput in run.json."""

    last_metrics: dict[str, float] = field(default_factory=dict)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second of a large matrix product on a CUDA device: 100 % MFU."""
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
    """Return the run's peak memory, of the GPU or of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()


def resident_bytes() -> int:
    """Return the highest resident memory of this process."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_by_category(
    module: nn.Module, optimizer: torch.optim.Optimizer, peak: int, baseline: int
) -> dict[str, int]:
    """Return the bytes of this rank's weights, gradients and optimizer states, and the rest.

    `rest` of the measured peak is activations and logits. `baseline` is not counted.
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
    """Return the bytes of these tensors, a shared storage (8-bit table, tied head) counted once."""
    return sum(
        {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in tensors
        }.values()
    )
