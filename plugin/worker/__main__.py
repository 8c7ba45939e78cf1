"""The worker: `python -m plugin.worker RUN_FOLDER [CHECKPOINT]` trains, one process a device;
`--check` tries the job without training.

It knows no host. It reads the parameters from run.json (or, for --check, from stdin), writes the
run folder, and exits with the code of what went wrong.
"""

from __future__ import annotations

from ..worker import stack_dump  # noqa: F401  # isort: skip  # a process that hangs while it imports shows where
from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import contextlib
import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..base.errors import (
    Code,
    JobError,
    Problem,
    first_line,
    internal_problem,
    json_line,
    print_problems,
)
from ..base.process import PARENT_PID
from ..base.redact import guard_streams
from ..config.params import Params
from ..run.events import FinishedEvent
from ..run.folder import RunFolder
from ..run.outcome import Outcome, Result
from .check import try_out
from .out_of_memory import explain_out_of_memory
from .rank import Rank, this_rank
from .reporter import report_failure
from .stop import StopRequested
from .tensorboard import hush_writer_thread
from .train import train_rank


def main() -> int:
    guard_streams()
    quiet_loading()
    hush_writer_thread()
    if sys.argv[1:2] == ["--check"]:
        return check(json.load(sys.stdin))
    folder = RunFolder(Path(sys.argv[1]))
    checkpoint = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    params = Params.model_validate(folder.read_run().params)
    rank = this_rank(params, folder, checkpoint)
    try:
        with explain_out_of_memory(params, None):
            result = train_rank(rank)
    except StopRequested:
        report_result(rank, Result(outcome="stopped", steps=0))
        return 0
    except Exception as error:
        problem = as_problem(error, folder)
        if problem.code == Code.INTERNAL:
            traceback.print_exc()
        # Another launcher shows what its processes print, and nothing but exit codes otherwise.
        if PARENT_PID not in os.environ:
            print_problems([problem])
        with contextlib.suppress(OSError):  # the exit code reports it as well
            report_failure(folder, problem, rank.number)
        return int(problem.code)
    else:
        report_result(rank, result)
        return 0
    finally:
        with contextlib.suppress(OSError):  # a full disk is reported already
            rank.reporter.close()  # the last seconds of the curves are still in memory


def report_result(rank: Rank, result: Result) -> None:
    """Report the result of a run.

    Write it into run.json as well where another program's launcher started us, for then no parent
    does.
    """
    rank.reporter.event(FinishedEvent(result=result))
    if PARENT_PID not in os.environ and rank.leads:
        outcome = Outcome(result.outcome, Code.OK, result=result)
        record = rank.folder.read_run().model_copy(update={"result": outcome.record})
        rank.folder.write_run(record)


def check(request: dict[str, Any]) -> int:
    """Try the job of `request` {params, ranks}; print {problems, report, notes} as one JSON object."""
    notes: list[str] = []
    problems: tuple[Problem, ...] = ()
    report = None
    params = Params.model_validate(request["params"])
    try:
        with explain_out_of_memory(params, None):
            report = try_out(params, request["ranks"], notes)
    except JobError as error:
        problems = error.problems
    except Exception as error:
        traceback.print_exc()
        problems = (as_problem(error),)
    print(
        json_line(
            {"problems": [one.as_json() for one in problems], "report": report, "notes": notes}
        )
    )
    return int(problems[0].code) if problems else 0


def as_problem(error: BaseException, folder: RunFolder | None = None) -> Problem:
    """Return the problem that a failure is reported as; `folder`: of the run, None for a check."""
    if isinstance(error, JobError):
        return error.problems[0]
    if is_disk_full(error):
        fix = f"Free some.{folder.what_is_saved() if folder else ''}"
        return Problem("disk", "space for the run's files", first_line(error), fix, Code.DISK)
    see = str(folder / "log.txt") if folder else "the lines above"
    return internal_problem(error, "worker", see)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException) -> bool:
    """Return whether a write failed for want of space. safetensors reports it as text alone, with
    the system's error number in it.
    """
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, SafetensorError) and any(
        f"(os error {number})" in str(error) for number in FULL
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
