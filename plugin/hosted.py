"""Ways in for hosts: the plugin-era harness calls `main.main()` with an input file. Each ends in the same `train_job`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from werkzeug.utils import secure_filename

from .guard import guarded
from .hosts.tlab import TlabHost
from .hosts.tlab_job import TlabJob, form_values, read_job
from .hosts.tlab_sdk import TlabSdk
from .job import JobError, Problem
from .parse import Parsed, parse
from .redact import guard_streams
from .train import train_job


def run_harness(argv: Sequence[str]) -> int:
    """A job of the plugin-era host: `--plugin_dir D --input_file F --experiment_name E`. Returns the exit code."""
    guard_streams()
    options = argparse.ArgumentParser(allow_abbrev=False)
    options.add_argument("--input_file", required=True)
    path = options.parse_known_args(argv)[0].input_file

    def refused(error: JobError) -> int:
        for problem in error.problems:  # without a readable file there is no job to report to
            print(problem.line, file=sys.stderr, flush=True)
        return error.code

    return guarded(lambda: _harness_job(read_job(path)), refused)


def _harness_job(job: TlabJob) -> int:
    host = TlabHost(job)

    def train() -> int:
        parsed = _tlab_parameters(job, host)
        host.line("effective values:")
        for name, value in parsed.params.as_json().items():
            host.line(f"  {name} = {json.dumps(value, ensure_ascii=False)}")
        return train_job(parsed, host)

    def failed(error: JobError) -> int:
        host.failed(error.problems)
        return error.code

    return guarded(train, failed)


def _tlab_parameters(job: TlabJob, host: TlabHost) -> Parsed:
    """The form's values as parameters, the host's own settings put in. Raises JobError."""
    values, ignored = form_values(job)
    parsed = parse(values, unknown="note")
    params = parsed.params
    update: dict[str, object] = {"dataset_name": _dataset(job, params.dataset_name, host)}
    if job.sweep_run:
        if params.eval_strategy == "no":
            fix = "A sweep compares eval/loss."
            raise JobError(Problem("eval_strategy", "steps or epoch in a sweep", "no", fix))
        update["fuse_model"] = False  # of many models one is kept: the host trains it again
    if params.log_to_wandb and not params.wandb_project:
        update["wandb_project"] = os.environ.get("WANDB_PROJECT", "") or job.experiment
    return replace(parsed, params=params.model_copy(update=update), notes=(*ignored, *parsed.notes))


def _dataset(job: TlabJob, name: str, host: TlabHost) -> str:
    """Where a data set of the host is. A folder of the workspace is found without its SDK, which takes ten seconds to import: only
    for other names is it asked before the workers start."""
    folder = job.workspace / "datasets" / secure_filename(name)
    if secure_filename(name) and folder.is_dir() and any(path.name != "index.json" for path in folder.iterdir()):
        return str(folder)
    if os.path.isabs(name) and Path(name).exists():
        return name
    return TlabSdk(host.line).dataset_path(name)
