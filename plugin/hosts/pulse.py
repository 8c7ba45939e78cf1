"""Signs of life in a log: one line every few seconds while a run loads, evaluates, saves or fuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ..run.events import Event, ProgressEvent

EVERY_S = 10.0
POLL_S = 1.0
WORDS = {
    "load": "loading",
    "train": "training",
    "eval": "evaluating",
    "save": "saving",
    "fuse": "fusing",
}


class Pulse:
    """A thread that writes the lines: the host's calls may take seconds, its SDK's import ten."""

    def __init__(self, say: Callable[[str], None], *, every_s: float = EVERY_S):
        self._say, self._every_s = say, every_s
        self._phase, self._since = "load", time.monotonic()
        self._last = self._since
        self._first_step: int | None = None
        self._moves = False  # finished steps are a sign of life themselves
        self._over = threading.Event()
        self._lock = threading.RLock()

    def start(self) -> None:
        self._since = self._last = time.monotonic()
        threading.Thread(target=self._run, daemon=True, name="pulse").start()

    def stop(self) -> None:
        self._over.set()

    @contextmanager
    def speaking(self) -> Generator[None]:
        """Guard a write to the log: one thread at a time, after which the silence begins anew."""
        with self._lock:
            yield
            self._last = time.monotonic()

    def event(self, event: Event) -> None:
        """Follow the phase of the run."""
        if not isinstance(event, ProgressEvent):
            return
        self._first_step = event.step if self._first_step is None else self._first_step
        if event.phase != self._phase:
            self._phase, self._since = event.phase, time.monotonic()
        self._moves = event.phase == "train" and event.step > self._first_step

    def _run(self) -> None:
        while not self._over.wait(min(POLL_S, self._every_s)):
            now = time.monotonic()
            if not self._moves and now - self._last >= self._every_s:
                self._say(
                    f"still {WORDS.get(self._phase, self._phase)}, for {now - self._since:.0f} s now"
                )
