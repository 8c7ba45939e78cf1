"""`check`: a job tried without training, in this program and in a torch program of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..base.errors import Code, JobError, Problem, json_line, print_problems, shown
from ..base.process import NO_DOWNLOADS, ROOT, end_with_parent, torch_program
from ..config.params import SCHEMA, Params
from ..config.parse import Parsed
from ..data.mixture import parse_mixture
from ..data.sources import fingerprint
from ..run.folder import RunFolder
from .check_report import print_check
from .last_words import LastWords
from .launch import make_plan
from .paths import inputs_inside, run_dir_of, with_full_paths
from .resume import ResumeTarget, find_start, resume_problems, resume_target
from .start_from import with_checkpoint
from .wandb import key_problem

CHECK_S = 300.0  # a check without an answer for this long hangs
CHECK_S_PER_MB = 10.0  # and this much more for its data


@dataclass(frozen=True)
class Examined:
    """Result of a check."""

    problems: Sequence[Problem]
    plan: Mapping[str, Any]


def check_job(parsed: Parsed, *, as_json: bool, download: bool) -> int:
    """Check a job without training and print the report. Returns the exit code of the first
    problem.
    """
    found = examine(parsed, download=download)
    if as_json:
        print_json(found.problems, found.plan)
    print_problems(found.problems)
    if not as_json:
        print_check(found.plan, ok=not found.problems)
    return int(found.problems[0].code) if found.problems else 0


def examine(parsed: Parsed, *, download: bool, begun: bool = False) -> Examined:
    """Check a job: its plan here, its model and data in a torch program.

    `begun`: its run folder may hold a run already.
    """
    notes: list[str] = []
    params, problems = with_checkpoint(with_full_paths(parsed.params), notes.append)
    broken_start = bool(problems)
    plan: dict[str, Any] = {}
    ranks = 1
    target = resume_target(params)
    run_dir = run_dir_of(params, target)
    try:
        with ExitStack() as opened:
            launch, _ = make_plan(params, run_dir, opened)
        plan["launch"], ranks = launch.as_json(), len(launch.ranks) * params.num_machines
    except JobError as error:
        problems += error.problems
    folder = RunFolder(run_dir)
    problems += [] if begun else _folder_problems(params, folder, target, ranks)
    problems += inputs_inside(params, folder)
    if problem := key_problem(params, os.environ):
        problems.append(problem)
    answer = _try_out(params.model_copy(update={"run_dir": str(run_dir)}), ranks, download=download)
    problems += [
        Problem(**problem)
        for problem in answer["problems"]
        if not (broken_start and problem["field"] == "start_from")  # one mistake, one line
    ]
    plan["command"] = train_command(parsed.params)
    plan |= {
        "params": params.as_json(),
        "notes": [*parsed.notes, *notes, *answer["notes"]],
        **(answer["report"] or {}),
    }
    return Examined(problems, plan)


def print_json(problems: Sequence[Problem], plan: Mapping[str, Any] | None, **more: object) -> None:
    """Print the one object of `check --json`; `plan` is None for a job that could not be read, and
    for one of several stages, which are `more`.
    """
    found = [problem.as_json() for problem in problems]
    print(json_line({"ok": not problems, "problems": found, "plan": plan, **more}))


def train_command(params: Params) -> list[str]:
    """Return the command line that trains the checked job from any folder; defaults are left out."""
    words = [sys.executable, str(ROOT / "main.py"), "train"]
    for name, value in with_full_paths(params).as_json().items():
        longer = params.num_train_epochs > 0 or params.train_tokens > 0
        ignored = name == "train_steps" and longer
        if value != SCHEMA[name]["default"] and not ignored:
            words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def _folder_problems(
    params: Params, folder: RunFolder, target: ResumeTarget, ranks: int
) -> list[Problem]:
    """List the reasons against starting, or resuming, a run in this folder."""
    if target.run_dir is None:
        return folder.problems()
    if found := folder.problems(goes_on=True):
        return found
    try:
        start = find_start(folder, target.checkpoint, lambda line: None)
        data = fingerprint(params.dataset_name)
    except JobError as error:
        return list(error.problems)
    return resume_problems(folder, start, params, ranks, data)[0] if start else []


def longest_check_s(params: Params) -> float | None:
    """Return the seconds after which a check counts as hanging; None for data of a hub.

    They are ten times what a check of this much data takes.
    """
    try:
        paths = [part.path for part in parse_mixture(params.dataset_name)]
        files = [
            file for path in paths if path for file in (path.iterdir() if path.is_dir() else [path])
        ]
        size = sum(file.stat().st_size for file in files if file.is_file())
    except (JobError, OSError):  # the check itself reports it
        return CHECK_S
    return CHECK_S + CHECK_S_PER_MB * size / 1e6 if all(paths) else None


def _try_out(params: Params, ranks: int, *, download: bool) -> Mapping[str, Any]:
    """Run the torch part of a check. Returns its {problems, report, notes}.

    Raises JobError: it hangs (exit 9) or dies (exit 8).
    """
    request = {"params": params.as_json(), "ranks": ranks}
    most_s = longest_check_s(params)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "plugin.worker", "--check"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env={
                **torch_program(os.environ),
                **({} if download else NO_DOWNLOADS),
                "TOKENIZERS_PARALLELISM": "true",
            },
            # A terminal's Ctrl-C reaches this program alone, which ends the other one silently.
            process_group=0,
            preexec_fn=end_with_parent(signal.SIGKILL),
            check=False,
            timeout=most_s,
        )
    except subprocess.TimeoutExpired as late:
        lines = (late.stdout or b"").decode(errors="replace").splitlines()
        got = f"one that was still {lines[-1] if lines else 'starting'}"
        raise JobError(
            Problem(
                "check",
                f"an answer within {most_s:.0f} s",
                got,
                "Check the data and the model that it reads.",
                Code.HANG,
            )
        ) from late
    print(shown(done.stderr), end="", file=sys.stderr)
    if not done.stdout:
        cause = LastWords(done.stderr.splitlines()).cause or "without an answer"
        got = f"exit {done.returncode}: {cause}"
        raise JobError(
            Problem("worker", "a check that ends", got, "See the lines above.", Code.WORKER_DIED)
        )
    return json.loads(done.stdout.splitlines()[-1])
