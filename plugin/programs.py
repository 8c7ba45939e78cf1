"""Commands that are programs of their own, found without reading the parameters of `train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from .base.errors import guarded
from .base.process import child_path, inherited, torch_program

# Command -> its program in commands/, and the reader of its arguments there. Programs may import
# torch, the readers do not.
PROGRAMS: dict[str, tuple[str, str, str]] = {
    "chat": ("chat", "chat.arguments", "chat_options"),
    "sample": ("sample", "sample_arguments", "sample_options"),
    "evaluate": ("evaluate", "evaluate_arguments", "evaluate_options"),
    "fuse": ("fuse", "fuse_arguments", "fuse_options"),
    "export": ("export", "export_arguments", "export_options"),
    "probe": ("probe", "probe_arguments", "probe_options"),
    "prepare": ("prepare", "prepare_arguments", "prepare_options"),
    "plan": ("plan", "plan.arguments", "plan_options"),
    "compare": ("compare", "compare_arguments", "compare_options"),
    "plot": ("plot", "compare_arguments", "plot_options"),
    "queue": ("queue", "queue.arguments", "queue_options"),
    "studio": ("studio", "studio.arguments", "studio_options"),
}
# Programs that start jobs, which choose their own threads.
STARTERS = ("queue", "studio")


def is_program(argv: Sequence[str]) -> bool:
    return bool(argv) and argv[0] in PROGRAMS


def run_program(argv: Sequence[str]) -> int:
    """Replace this process by a command's program, once its command line is known to be right.

    Returns the exit code of a command line that is wrong, its errors printed.
    """
    program, arguments, reader = PROGRAMS[argv[0]]

    def become() -> int:
        package = f"{__package__}.commands"
        read: Callable[[Sequence[str]], object] = getattr(
            import_module(f"{package}.{arguments}"), reader
        )
        read(argv[1:])
        words = [sys.executable, "-P", "-m", f"{package}.{program}", *argv[1:]]
        kept = inherited(os.environ) | child_path(os.environ)
        env = kept if argv[0] in STARTERS else torch_program(os.environ)
        os.execve(sys.executable, words, env)

    return guarded(become)
