"""Faults for a rank's own code: `arm("point:event:step:rank")` wraps the product's functions.

For tests only. A fault strikes once, in the process it was armed in, right before the point's
function would run. It leaves `RUN.struck` next to the run folder, whose time is the fault's.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

FAULT = "TRAINER_TEST_FAULT"

Event = Callable[[tuple[Any, ...]], None]  # gets the arguments of the function it comes before


def arm(text: str) -> None:
    """Arm a fault; do nothing for an empty text, or for a fault of another rank."""
    if not text:
        return
    point, event, step, rank = text.split(":")
    if int(os.environ.get("RANK", "0")) == int(rank):
        _Fault(point, EVENTS[event], int(step)).arm()


class _Fault:
    """A fault that waits for its point in its step."""

    def __init__(self, point: str, event: Event, step: int):
        self._point, self._event, self._step = point, event, step
        self._progress: Any = None  # of the loop, once it runs
        self._struck = False

    def arm(self) -> None:
        from plugin.assembly import fuse
        from plugin.base import files
        from plugin.training import loop
        from plugin.worker import checkpoints, hooks, publish, train

        points: dict[
            str, tuple[ModuleType, str, int]
        ] = {  # module, function, steps that are finished when it runs
            "load": (train, "build_training", -1),
            "step": (loop, "_forward_backward", self._step - 1),
            "gradient": (loop, "_read", self._step - 1),
            "eval": (hooks, "evaluate", self._step),
            "save": (checkpoints, "write_model", self._step),
            "save.optimizer": (checkpoints, "save_file", self._step),
            "save.digests": (checkpoints, "write_digests", self._step),
            "save.rename": (files, "_fsync_all", self._step),
            "save.renamed": (checkpoints, "best_checkpoints", self._step),
            "fuse": (fuse, "write_model", self._step),
            "fuse.adapter": (publish, "fuse_adapter", self._step),
        }
        self._wrap(loop, "train", self._remember)
        if self._point == "save.remove":
            files.shutil = _Shutil(self._strike_once, self._is_due)
            return
        module, name, done = points[self._point]
        self._wrap(
            module,
            name,
            lambda args: self._strike_once(args) if done < 0 or self._is_due(done) else None,
        )

    def _is_due(self, done: int | None = None) -> bool:
        return (self._progress.done if self._progress else 0) == (
            self._step if done is None else done
        )

    def _remember(self, args: tuple[Any, ...]) -> None:
        self._progress = args[-1]  # `at`, the last of loop.train

    def _strike_once(self, args: tuple[Any, ...]) -> None:
        if not self._struck:
            self._struck = True
            folder = Path(sys.argv[1])
            folder.with_name(f"{folder.name}.struck").touch()
            self._event(args)

    def _wrap(self, module: ModuleType, name: str, before: Event) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            before(args)
            return real(*args, **options)

        setattr(module, name, wrapped)


class _Shutil:
    """shutil, whose removal of an old checkpoint is struck half-way."""

    def __init__(self, strike: Event, is_due: Callable[[], bool]):
        self._strike, self._is_due = strike, is_due

    def rmtree(self, path: Path, **options: Any) -> None:
        if self._is_due() and path.is_dir() and not options.get("ignore_errors"):
            for name in ("state.json", "model.safetensors"):
                (path / name).unlink(missing_ok=True)
            self._strike(())
        shutil.rmtree(path, **options)


def _raise(args: tuple[Any, ...]) -> None:
    raise RuntimeError("injected")


def _kill(args: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_parent(args: tuple[Any, ...]) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _device_memory(args: tuple[Any, ...]) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _memory(args: tuple[Any, ...]) -> None:
    """Limit memory: the next tensor of any size fails for real."""
    import torch

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20), resource.RLIM_INFINITY))
    torch.empty(1 << 40, dtype=torch.uint8)


def _disk(args: tuple[Any, ...]) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _quota(args: tuple[Any, ...]) -> None:
    """Limit files to 48 KiB from here: the next model file cannot be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (48 << 10, resource.RLIM_INFINITY))


def _hang(args: tuple[Any, ...]) -> None:
    threading.Event().wait()


def _poison(args: tuple[Any, ...]) -> None:
    """Write NaN into a step's gradient norm, a first document's loss weight, or evaluated weights."""
    import torch

    with torch.no_grad():
        if isinstance(args[3], torch.Tensor):  # the gradient norm that the step is about to read
            args[3].fill_(float("nan"))
        elif hasattr(args[2], "micro_batches"):
            args[2].micro_batches[0].batch.weight[0] = float("nan")
        else:
            next(args[1].parameters()).fill_(float("nan"))


def _stop(args: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _board(args: tuple[Any, ...]) -> None:
    """Replace TensorBoard's folder by a file: nothing can be written there, even by root."""
    board = Path(sys.argv[1]) / "tb"
    shutil.rmtree(board)
    board.touch()


EVENTS: dict[str, Event] = {
    "board": _board,
    "raise": _raise,
    "kill": _kill,
    "parent": _kill_parent,
    "oom": _device_memory,
    "memory": _memory,
    "disk": _disk,
    "quota": _quota,
    "hang": _hang,
    "nan": _poison,
    "stop": _stop,
}
