"""The one guarded call that every way into this program ends in: a failure always gets its line, a
bug of ours its traceback too.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from .errors import Code, JobError, Problem


def guarded(job: Callable[[], int], failed: Callable[[JobError], int]) -> int:
    """Run `job` to its exit code; `failed` reports what went wrong and returns the code instead."""
    try:
        return job()
    except JobError as error:
        return failed(error)
    except Exception as error:
        got = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        traceback.print_exc()
        fix = "Please report this with the lines above."
        return failed(JobError(Problem("main", "no internal error", got, fix, Code.INTERNAL)))
