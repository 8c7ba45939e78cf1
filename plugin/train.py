"""The parent's side of a job: check or train. Validated parameters in, outcome out; torch is never imported here."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .data.sources import absolute_mixture, fingerprint
from .data.templates import compile_templates
from .hosts import Host
from .job import Code, JobError, Outcome, Problem
from .launch import ROOT, LaunchPlan, Relay, free_port, nvidia_smi, plan_launch, resolve_gpus, run_workers, visible_gpus
from .model_files import check_model_files
from .params import Params
from .parse import Parsed
from .report import print_check
from .run_folder import STOP, RunFolder, local_path

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy")


def make_plan(params: Params, run_dir: Path) -> LaunchPlan:
    gpus = resolve_gpus(params, visible_gpus(os.environ, nvidia_smi) if params.train_device != "cpu" else [])
    return plan_launch(params, run_dir, gpus, free_port(), os.environ)


def train_job(parsed: Parsed, host: Host) -> int:
    """Train into a new run folder and report the outcome once. Returns the exit code; raises JobError before anything is written."""
    params = with_full_paths(parsed.params)
    run_dir = Path(params.run_dir or default_run_dir(params)).expanduser().absolute()
    plan = make_plan(params, run_dir)
    data = _look_first(params)
    folder = RunFolder(run_dir)
    folder.create()
    params = params.model_copy(update={"run_dir": str(run_dir)})
    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: signals.append(number)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    environment = describe_environment(plan, data)
    try:
        with folder.locked():
            folder.write_run(params.as_json(), environment, None)
            for note in parsed.notes:
                host.line(note)
            host.started(folder, plan)
            relay = Relay(line=host.line, event=host.event, stop_signals=lambda: signals, stop_wanted=host.stop_wanted)
            outcome = Outcome("failed", Code.INTERNAL, Problem("main", "a run to its end", "an internal error", "See stderr.", 1))
            try:
                outcome = run_workers(plan, folder, relay)
            finally:
                folder.answered(STOP)
                folder.write_run(params.as_json(), environment, outcome.as_json())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    host.finished(folder, outcome)
    return int(outcome.code)


def _look_first(params: Params) -> str:
    """What can be seen wrong without torch, before a folder is made, all at once. Returns the digest of the data."""
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
    except JobError as error:
        problems += error.problems
    try:
        digest = fingerprint(params.dataset_name)
    except JobError as error:
        problems += error.problems
    if problems:
        raise JobError(*problems)
    return digest


def with_full_paths(params: Params) -> Params:
    """Paths in full: run.json repeats its run, and an adapter finds its base, from any folder."""
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


def describe_environment(plan: LaunchPlan, data: str) -> dict[str, Any]:
    """What a run ran on: versions, devices, commit of this program, digest of the data."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "devices": list(plan.gpus) or ["cpu"],
        "processes": len(plan.ranks),
        "git": commit.stdout.strip() or None,
        "data": data,
        "cwd": os.getcwd(),
    }


def check_job(parsed: Parsed, *, as_json: bool, download: bool) -> int:
    """The dry run: plan, then the torch part in a process of its own. Returns the first problem's code."""
    params = with_full_paths(parsed.params)
    problems: list[Problem] = []
    plan: dict[str, Any] = {}
    ranks = 1
    run_dir = Path(params.run_dir or default_run_dir(params)).expanduser().absolute()
    try:
        launch = make_plan(params, run_dir)
        plan["launch"], ranks = launch.as_json(), len(launch.ranks)
    except JobError as error:
        problems += error.problems
    problems += RunFolder(run_dir).problems()
    answer = _try_out(params, ranks, offline=not download)
    problems += [Problem(**problem) for problem in answer["problems"]]
    plan |= {"params": params.as_json(), "notes": [*parsed.notes, *answer["notes"]], **(answer["report"] or {})}
    if as_json:
        shown = [problem.as_json() for problem in problems]
        print(json.dumps({"ok": not problems, "problems": shown, "plan": plan}, ensure_ascii=False))
    for problem in problems:
        print(problem.line, file=sys.stderr)
    if not as_json:
        print_check(plan, ok=not problems)
    return int(problems[0].code) if problems else 0


def _try_out(params: Params, ranks: int, *, offline: bool) -> Mapping[str, Any]:
    request = {"params": params.as_json(), "ranks": ranks, "offline": offline}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "plugin.worker", "--check"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "true"},
        check=False,
    )
    if not done.stdout:
        raise JobError(
            Problem("worker", "a check that ends", f"exit {done.returncode} without an answer", "See the lines above.", 8)
        )
    return json.loads(done.stdout.splitlines()[-1])
