"""TensorBoard's files, which a run can do without: if they cannot be written it logs that once, and
metrics.jsonl has the curves.

The library opens files with names of its own (time, host, process) inside `tb/`, which was checked
to be no link.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

Draw = Callable[[SummaryWriter], object]


class Board:
    """A SummaryWriter until a write fails, then nothing.

    A run resumed after `first_step` hides what was drawn later.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], first_step: int):
        self._folder, self._warn = folder, warn
        self._writer: SummaryWriter | None = None
        behind = first_step + 1 if first_step else None
        self._try(
            lambda: setattr(
                self, "_writer", SummaryWriter(str(folder), flush_secs=10, purge_step=behind)
            )
        )

    def draw(self, draw: Draw) -> None:
        """Call `draw` with the writer.

        An error on the way to the disk, in a thread of the library, is raised by a later call.
        """
        if writer := self._writer:
            self._try(lambda: draw(writer))

    def flush(self) -> None:
        self.draw(SummaryWriter.flush)

    def close(self) -> None:
        self.draw(SummaryWriter.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._writer = None
            self._warn(
                f"warning: {self._folder.name}: {error.strerror or error}; no more curves there, metrics.jsonl has them all"
            )


def hush_writer_thread() -> None:
    """Silence TensorBoard's writer thread, which prints a traceback before it re-raises the error
    in our thread. We report that error in one line.
    """
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (
            args.thread
            and type(args.thread).__module__.startswith("tensorboard.")
            and isinstance(args.exc_value, OSError)
        ):
            usual(args)

    threading.excepthook = hook
