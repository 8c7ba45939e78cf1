"""Prefetcher of steps: a thread builds the next step while the device works on the current one.

A thread and not a process: it starts immediately, is safe in every host, and most of its work
(numpy) releases the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from .step import Step


class Prefetcher:
    """`prefetcher(step)` is `make(step)`, built in advance if steps are asked for in order.

    `pin` places batches in page-locked memory, for a GPU.
    """

    def __init__(self, make: Callable[[int], Step], steps: int, *, pin: bool):
        self._make, self._steps, self._pin = make, steps, pin
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-step")
        self._coming: dict[int, Future[Step]] = {}

    def __call__(self, step: int) -> Step:
        coming = self._coming.pop(step, None) or self._thread.submit(self._build, step)
        if step + 1 < self._steps:
            self._coming = {step + 1: self._thread.submit(self._build, step + 1)}
        return coming.result()

    def close(self) -> None:
        """End the thread after the step that it is building."""
        self._thread.shutdown(cancel_futures=True)

    def _build(self, step: int) -> Step:
        built = self._make(step)
        if not self._pin:
            return built
        return replace(
            built,
            micro_batches=tuple(
                replace(micro_batch, batch=micro_batch.batch.pinned())
                for micro_batch in built.micro_batches
            ),
        )
