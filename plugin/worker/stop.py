"""Requests to stop a worker: a signal, the STOP file, or the death of its parent.

All three mean the same: finish the step, save, exit. Only the parent escalates.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from ..base.process import PARENT_PID
from ..run.folder import SAMPLE, SAVE, STOP, RunFolder, TakenOnce

ORPHAN_LIMIT_S = 30.0  # an orphan that has not saved and gone by then is ended


class StopRequested(Exception):
    """Raised between rows and phases before the first step, where there is nothing to save."""


class RequestListener:
    """Requests to this worker. One instance a process."""

    def __init__(self, folder: RunFolder, *, reads_files: bool):
        self._folder, self._reads_files = folder, reads_files
        self._once = TakenOnce(folder, lambda line: print(line, flush=True))
        self._stop = threading.Event()
        self._parent = int(os.environ.get(PARENT_PID, os.getppid()))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        threading.Thread(target=self._watch_parent, daemon=True, name="watch-parent").start()

    def _watch_parent(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(0.5)
        self._stop.set()
        time.sleep(ORPHAN_LIMIT_S)
        if os.getpgrp() == os.getpid():  # as the parent starts us: what we started ends too
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def stop(self) -> bool:
        return self._stop.is_set() or (self._reads_files and self._folder.asked(STOP))

    def raise_if_stopped(self) -> None:
        if self.stop():
            raise StopRequested

    def save(self) -> bool:
        return self._reads_files and self._once.take(SAVE)

    def sample(self) -> bool:
        return self._reads_files and self._once.take(SAMPLE)
