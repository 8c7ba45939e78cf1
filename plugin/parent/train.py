"""The parent's side of a job: check or train.

Validated parameters in, outcome out; torch is never imported here.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..base.errors import Code, JobError, Problem, json_line, shown
from ..base.process import NO_DOWNLOADS, ROOT, of_launcher, torch_program
from ..config.model_files import check_method, check_model_files, refuse_missing_path
from ..config.params import Params
from ..config.parse import SCHEMA, Parsed, is_writable
from ..data.mixture import absolute_mixture, parse_mixture
from ..data.sources import fingerprint, local_paths
from ..data.templates.form import compile_templates
from ..run.folder import STOP, RunFolder, local_path
from ..run.lock import LOCK_WAIT_S
from ..run.outcome import Outcome
from ..run.run_file import Environment, RunFile
from .check_report import print_check
from .host import Host
from .last_words import LastWords
from .launch import (
    LaunchPlan,
    listen,
    machine_dir,
    nvidia_smi,
    plan_launch,
    resolve_gpus,
    visible_gpus,
)
from .network import interface_to
from .resume import Start, cut_back, find_start, parameter_problems, resume_target, state_problems
from .supervise import Inherited, Relay, run_workers
from .wandb import key_problem, relayed

CHECK_S, CHECK_S_PER_MB = (
    300.0,
    10.0,
)  # a check without an answer after so long, and so much data, hangs
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


def make_plan(
    params: Params, run_dir: Path, opened: ExitStack
) -> tuple[LaunchPlan, socket.socket | None]:
    """The processes, and the port that other machines come to, which `opened` closes.

    Raises JobError.
    """
    gpus = resolve_gpus(
        params, visible_gpus(os.environ, nvidia_smi) if params.train_device != "cpu" else []
    )
    listener = listen(params)
    if listener:
        opened.enter_context(listener)
    port = params.main_process_port if isinstance(params.main_process_port, int) else 0
    environ = dict(os.environ)
    if params.num_machines > 1 and "GLOO_SOCKET_IFNAME" not in environ:
        environ["GLOO_SOCKET_IFNAME"] = interface_to(params.main_process_ip)
    return plan_launch(params, run_dir, gpus, port, environ), listener


def chosen_run_dir(params: Params) -> Path:
    named = (
        resume_target(params).run_dir
        or Path(params.run_dir or default_run_dir(params)).expanduser().absolute()
    )
    return machine_dir(params, named)


def train_job(parsed: Parsed, host: Host) -> int:
    """Train into a new run folder and report the outcome once.

    Returns the exit code; raises JobError before anything is written.
    """
    params = with_full_paths(parsed.params)
    run_dir = chosen_run_dir(params)
    with ExitStack() as opened:
        plan, listener = make_plan(params, run_dir, opened)
        folder = RunFolder(run_dir)
        goes_on = params.resume != "false"
        data = _look_first(params, folder)
        new = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
        folder.create(goes_on=goes_on)
        lock = opened.enter_context(folder.locked(LOCK_WAIT_S, host.line))
        start = go_on(folder, params, plan, data, host.line) if goes_on else None
        if start is None:
            folder.clear(goes_on=goes_on)
        folder.answered(STOP)  # one that was meant for a run before
        environment = describe_environment(plan, data)
        if start:
            environment = environment.model_copy(update={"resumed_from": start.checkpoint.name})
            plan = replace(plan, argv=(*plan.argv, str(start.checkpoint)))
        params = params.model_copy(update={"run_dir": str(run_dir), "resume": "false"})
        run = RunFile(params=params.as_json(), environment=environment, result=None)
        folder.write_run(run)
        for note in [*parsed.notes, *_note_of_launcher()]:
            host.line(note)
        private = Path(
            opened.enter_context(TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True))
        )
        host.started(folder, plan)
        opened.enter_context(relayed(params, folder, host.line))
        outcome = Outcome(
            "failed",
            Code.INTERNAL,
            Problem("main", "a run to its end", "an internal error", "See stderr.", 1),
        )
        try:
            with stop_signals() as signals:
                relay = Relay(
                    host.line, host.event, lambda: signals, host.stop_wanted, host.stop_grace_s
                )
                outcome = run_workers(
                    plan, folder, relay, Inherited(lock, listener, private), params.hang_timeout_s
                )
        finally:
            _write_outcome(folder, host, run, outcome)
    if outcome.code in REFUSALS and start is None:
        folder.remove_refused()
        for path in new:
            with suppress(OSError):  # it holds something of somebody else's
                path.rmdir()
    host.finished(folder, outcome)
    return int(outcome.code)


def _note_of_launcher() -> list[str]:
    if not (names := of_launcher(os.environ)):
        return []
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return [
        f"environment: {shown}, another launcher's, are not used; num_machines and num_processes say where a run trains"
    ]


def go_on(
    folder: RunFolder, params: Params, plan: LaunchPlan, data: str, say: Callable[[str], None]
) -> Start | None:
    """Make the folder ready to go on from its checkpoint; None when it holds none yet.

    Raises JobError with every reason against it.
    """
    of_run = (
        RunFolder(folder.path.parent) if params.machine_rank else folder
    )  # the first machine has the checkpoints
    start = find_start(of_run, resume_target(params).checkpoint, say)
    if start is None:
        say(f"resume: {folder.path} holds no checkpoint yet; the run starts at step 0")
        return None
    found, changes = resume_problems(
        folder, start, params, len(plan.ranks) * params.num_machines, data
    )
    if found:
        raise JobError(*found)
    say(f"resume: going on from step {start.step}")
    for line in changes:
        say(line)
    cut_back(folder, start.step, say)
    return start


def resume_problems(
    folder: RunFolder, start: Start, params: Params, ranks: int, data: str
) -> tuple[list[Problem], list[str]]:
    """(why this run cannot go on with these parameters, lines on what changes)."""
    try:
        before = folder.read_run()
        problems, changes = parameter_problems(before.params, params)
    except (OSError, ValueError) as error:
        return [Problem("resume", "a run folder with its run.json", f"{folder.path}: {error}")], []
    if before.environment.data != data:
        fix = "Put the old data back, or start a new run from the checkpoint as its model_name."
        problems.append(
            Problem("dataset_name", "the data this run was trained on so far", "other content", fix)
        )
    return problems + state_problems(start, params, ranks), changes


@contextmanager
def stop_signals() -> Generator[list[int]]:
    """SIGTERM and SIGINT, collected instead of obeyed."""
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
            f"warning: {folder / STOP} cannot be taken away (a folder that holds something?); remove it before the next run"
        )
    try:
        folder.write_run(run.model_copy(update={"result": outcome.record}))
    except OSError as error:  # the disk that ended the run: what became of it is still told
        host.line(f"run.json could not be written: {error.strerror}")


def _look_first(params: Params, folder: RunFolder) -> str:
    """What can be seen wrong without torch, before the folder is made, all at once.

    Returns the digest of the data.
    """
    problems: list[Problem] = []
    digest = ""
    templates = (params.instruction_template, params.input_template, params.output_template)
    try:
        compile_templates(*templates)
    except JobError as error:
        problems += error.problems
    try:
        if params.model_name:
            check_model_files(params.model_name)
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


def inputs_inside(params: Params, folder: RunFolder) -> list[Problem]:
    """What the run would read in the folder that it writes, and may clear first; a run that goes on
    may read what it read so far.
    """
    before: Mapping[str, Any] = {}
    if params.resume != "false" and folder.path.is_dir() and not folder.problems(goes_on=True):
        with suppress(OSError, ValueError):
            before = folder.read_run().params
    root = folder.path.parent if params.machine_rank else folder.path
    fix = "Choose another run_dir, or move it."
    found: list[Problem] = []
    values = params.as_json()
    for name in ("dataset_name", "model_name", "tokenizer_name", "model_config"):
        value: str = values[name]
        if not value or before.get(name) == value:
            continue
        paths = local_paths(value) if name == "dataset_name" else [Path(value).expanduser()]
        if inside := next((path for path in paths if _lies_in(path, root)), None):
            found.append(
                Problem(
                    name, "what lies outside of run_dir", f"{inside}, which lies in {root}", fix
                )
            )
    return found


def _lies_in(path: Path, folder: Path) -> bool:
    """Tell a path in a folder, by its name or by where links lead."""
    return path.exists() and (
        path.absolute().is_relative_to(folder) or path.resolve().is_relative_to(folder.resolve())
    )


def with_full_paths(params: Params) -> Params:
    """Paths in full: run.json repeats its run, and an adapter finds its base, from any folder.

    Raises JobError (exit 2).
    """
    if not is_writable(os.getcwd()):
        raise JobError(
            Problem(
                "main",
                "a current folder whose name is UTF-8",
                os.getcwd(),
                "Start in another folder.",
            )
        )
    return params.model_copy(
        update={
            "model_name": local_path(params.model_name),
            "tokenizer_name": local_path(params.tokenizer_name),
            "model_config_file": local_path(params.model_config_file),
            "dataset_name": absolute_mixture(params.dataset_name),
        }
    )


def default_run_dir(params: Params) -> str:
    return f"runs/{datetime.now():%Y-%m-%d-%H%M%S}-{params.adaptor_name}"


def describe_environment(plan: LaunchPlan, data: str) -> Environment:
    """What a run ran on: versions, devices, commit of this program, digest of the data."""
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


def check_job(parsed: Parsed, *, as_json: bool, download: bool) -> int:
    """The dry run: plan, then the torch part in a process of its own.

    Returns the first problem's code.
    """
    params = with_full_paths(parsed.params)
    problems: list[Problem] = []
    plan: dict[str, Any] = {}
    ranks = 1
    run_dir = chosen_run_dir(params)
    try:
        with ExitStack() as opened:
            launch, _ = make_plan(params, run_dir, opened)
        plan["launch"], ranks = launch.as_json(), len(launch.ranks) * params.num_machines
    except JobError as error:
        problems += error.problems
    problems += _folder_problems(params, RunFolder(run_dir), ranks)
    problems += inputs_inside(params, RunFolder(run_dir))
    if problem := key_problem(params, os.environ):
        problems.append(problem)
    answer = _try_out(params, ranks, download=download)
    problems += [Problem(**problem) for problem in answer["problems"]]
    plan["command"] = train_command(parsed.params)
    plan |= {
        "params": params.as_json(),
        "notes": [*parsed.notes, *answer["notes"]],
        **(answer["report"] or {}),
    }
    if as_json:
        print(
            json_line(
                {
                    "ok": not problems,
                    "problems": [problem.as_json() for problem in problems],
                    "plan": plan,
                }
            )
        )
    for problem in problems:
        print(problem.line, file=sys.stderr)
    if not as_json:
        print_check(plan, ok=not problems)
    return int(problems[0].code) if problems else 0


def train_command(params: Params) -> list[str]:
    """Return the words that train what was checked, from any folder; what has its default is left
    out.
    """
    words = [sys.executable, str(ROOT / "main.py"), "train"]
    for name, value in with_full_paths(params).as_json().items():
        ignored = name == "train_steps" and params.num_train_epochs > 0
        if value != SCHEMA[name]["default"] and not ignored:
            words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def _folder_problems(params: Params, folder: RunFolder, ranks: int) -> list[Problem]:
    """What speaks against running, or going on, in this folder."""
    target = resume_target(params)
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
    """Return the seconds after which a check is taken to hang, ten times what this much data takes;
    None for a hub's.
    """
    try:
        paths = [part.path for part in parse_mixture(params.dataset_name)]
        files = [
            file for path in paths if path for file in (path.iterdir() if path.is_dir() else [path])
        ]
        size = sum(file.stat().st_size for file in files if file.is_file())
    except (JobError, OSError):  # which the check itself will tell
        return CHECK_S
    return CHECK_S + CHECK_S_PER_MB * size / 1e6 if all(paths) else None


def _try_out(params: Params, ranks: int, *, download: bool) -> Mapping[str, Any]:
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
            # a terminal's Ctrl-C is for this program alone, which then ends that one without a word
            # from it
            process_group=0,
            check=False,
            timeout=most_s,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace").splitlines()
        got = f"one that was still {said[-1] if said else 'starting'}"
        raise JobError(
            Problem(
                "check",
                f"an answer within {most_s:.0f} s",
                got,
                "Look at what it reads.",
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
