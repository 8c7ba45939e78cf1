"""Recognition of failed allocations, and the error that a run reports for one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..assembly.memory import MemoryPlan
from ..assembly.memory_advice import out_of_memory
from ..base.errors import JobError, first_line
from ..config.params import Params

_WORDS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed.

    torch's CPU allocator, a library of CUDA and a file mapped by safetensors report it as text
    alone.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _WORDS
    )


def what_was_wanted(error: BaseException) -> str:
    """Return the failed allocation in words.

    torch's CPU allocator begins with a line of its own source.
    """
    wanted = re.search(r"tried to allocate (\d+) bytes", str(error))
    return f"no room for {int(wanted[1]) / 1e9:.2f} GB more" if wanted else first_line(error)


@contextmanager
def explain_out_of_memory(params: Params, plan: MemoryPlan | None) -> Iterator[None]:
    """Turn a failed allocation into the JobError (exit 5) that names what needs most memory.

    `plan`: of the run, None before there is one.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(out_of_memory(params, plan, what_was_wanted(error))) from error
