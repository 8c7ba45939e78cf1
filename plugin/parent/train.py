"""`train`: a job from its parameters to its outcome. The workers do the training."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from ..base.errors import Code, JobError, Problem, renamed_field
from ..base.process import ROOT, of_launcher
from ..config.model_files import check_method, check_model_files, refuse_missing_path
from ..config.params import Params
from ..config.parse import Parsed
from ..data.sources import fingerprint
from ..data.templates.form import compile_templates
from ..run.folder import STOP, RunFolder
from ..run.lock import LOCK_WAIT_S
from ..run.outcome import Outcome
from ..run.run_file import Environment, RunFile
from .host import Host
from .launch import LaunchPlan, devices_line, make_plan
from .paths import inputs_inside, run_dir_of, with_full_paths
from .resume import resume, resume_target
from .start_from import with_checkpoint
from .supervise import Inherited, Relay, run_workers
from .wandb import relayed

REFUSALS = (Code.CONFIGURATION, Code.DATA, Code.MODEL)  # before the first step they leave nothing
LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)


def train_job(parsed: Parsed, host: Host) -> int:
    """Train into a new or a resumed run folder and report the outcome once.

    The order matters:
    1. Plan the processes and bind the port: when that fails, no folder has been made.
    2. Check everything that needs no torch, still before the folder exists.
    3. Make the folder and lock it, before anything in it is read or removed.
    4. Under the lock, cut a resumed run back to its checkpoint; clear a run that has none.
    5. Then take away STOP, which was meant for an earlier run; from here on it stops this one.
    6. Write run.json, then tell the host, which reads it.
    7. Start the workers and wait for them. However they end, write the outcome into run.json.
    8. Release the lock, remove what a refused job has made, report the outcome.

    Returns the exit code. Raises JobError before anything is written.
    """
    params, problems = with_checkpoint(with_full_paths(parsed.params), host.line)
    target = resume_target(params)
    run_dir = run_dir_of(params, target)
    resumes = target.run_dir is not None
    start = None
    with ExitStack() as opened:
        plan, listener = make_plan(params, run_dir, opened)
        folder = RunFolder(run_dir)
        data = check_inputs(params, folder, problems)
        new = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
        folder.create(goes_on=resumes)
        lock = opened.enter_context(folder.locked(LOCK_WAIT_S, host.line))
        if resumes:
            ranks = len(plan.ranks) * params.num_machines
            start = resume(folder, target.checkpoint, params, ranks, data, host.line)
        if start is None:
            folder.clear(goes_on=resumes)
        folder.answered(STOP)
        environment = describe_environment(plan, data)
        if start:
            environment = environment.model_copy(update={"resumed_from": start.checkpoint.name})
            plan = replace(plan, argv=(*plan.argv, str(start.checkpoint)))
        params = params.model_copy(update={"run_dir": str(run_dir), "resume": "false"})
        run = RunFile(params=params.as_json(), environment=environment, result=None)
        folder.write_run(run)
        for note in [*parsed.notes, *_note_of_launcher()]:
            host.line(note)
        private = TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True)
        inherited = Inherited(lock, listener, Path(opened.enter_context(private)))
        host.line(f"run folder: {run_dir}")
        host.line(f"devices: {devices_line(plan.gpus, len(plan.ranks))}")
        host.started(folder, plan)
        opened.enter_context(relayed(params, folder, host.line))
        outcome = _unknown_outcome()
        try:
            with stop_signals() as signals:
                relay = Relay(
                    host.line, host.event, lambda: signals, host.stop_wanted, host.stop_grace_s
                )
                outcome = run_workers(plan, folder, relay, inherited, params.hang_timeout_s)
        finally:
            _write_outcome(folder, host, run, outcome)
    if outcome.code in REFUSALS and start is None:
        _remove_refused(folder, new)
    host.finished(folder, outcome)
    return int(outcome.code)


def check_inputs(params: Params, folder: RunFolder, found: Sequence[Problem]) -> str:
    """Check what can be checked without torch. Returns the digest of the data.

    Raises JobError with every problem, those `found` so far first.
    """
    problems = list(found)
    digest = ""
    templates = (params.instruction_template, params.input_template, params.output_template)
    try:
        compile_templates(*templates)
    except JobError as error:
        problems += error.problems
    try:
        if params.model_name:
            check_model_files(params.model_name)
        if params.init_from:
            with renamed_field("model_name", "init_from"):
                check_model_files(params.init_from)
        if params.tokenizer_name:
            refuse_missing_path("tokenizer_name", params.tokenizer_name)
        check_method(params)
    except JobError as error:
        problems += error.problems
    try:
        digest = fingerprint(params.dataset_name)
    except JobError as error:
        problems += error.problems
    problems += inputs_inside(params, folder)
    if problems:
        raise JobError(*problems)
    return digest


def _note_of_launcher() -> list[str]:
    if not (names := of_launcher(os.environ)):
        return []
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return [
        f"environment: {shown}, another launcher's, are not used; num_machines and num_processes say where a run trains"
    ]


def describe_environment(plan: LaunchPlan, data: str) -> Environment:
    """Return the versions, devices, commit of this program and digest of the data of a run."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return Environment(
        versions={"python": platform.python_version(), **versions},
        devices=list(plan.gpus) or ["cpu"],
        processes=len(plan.ranks),
        git=commit.stdout.strip() or None,
        data=data,
        cwd=os.getcwd(),
    )


def _unknown_outcome() -> Outcome:
    """Return the outcome that stands if this program fails while the workers run."""
    problem = Problem("main", "a run to its end", "an internal error", "See stderr.", Code.INTERNAL)
    return Outcome("failed", Code.INTERNAL, problem)


@contextmanager
def stop_signals() -> Generator[list[int]]:
    """Collect SIGTERM and SIGINT instead of obeying them."""
    signals: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in numbers
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write_outcome(folder: RunFolder, host: Host, run: RunFile, outcome: Outcome) -> None:
    if not folder.answered(STOP):
        host.line(
            f"warning: {folder / STOP} cannot be removed (is it a folder that holds something?); remove it before the next run"
        )
    try:
        folder.write_run(run.model_copy(update={"result": outcome.record}))
    except OSError as error:  # a full disk ended the run: the outcome is still reported
        host.line(f"run.json could not be written: {error.strerror}")


def _remove_refused(folder: RunFolder, new: Sequence[Path]) -> None:
    """Remove what a refused job has made: its run folder, and the new folders above it."""
    folder.remove_refused()
    for path in new:
        with suppress(OSError):  # it holds somebody else's files
            path.rmdir()
