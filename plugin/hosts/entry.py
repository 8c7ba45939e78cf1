"""Entry points of hosts: the plugin-era harness with an input file, and `main.py --task`.

Both end in the same `train_job`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from werkzeug.utils import secure_filename

from ..base.errors import JobError, Problem, guarded
from ..base.process import ROOT
from ..base.redact import guard_streams
from ..config.command_line import CommandLine
from ..config.model_files import check_architecture
from ..config.parse import Parsed, parse
from ..data.mixture import renamed_mixture
from ..parent.host import JobHost
from ..parent.train import train_job
from .plugin_era.host import TlabHost
from .plugin_era.job import TlabJob, adaptor_name, form_values, read_job
from .plugin_era.sdk import TlabSdk
from .task import TaskHost, chosen_checkpoint, copy_checkpoint, started_sdk, task_values


def run_harness(argv: Sequence[str]) -> int:
    """Run a job of the plugin-era host: `--plugin_dir D --input_file F --experiment_name E`.

    Returns the exit code.
    """
    guard_streams()
    options = CommandLine(prog="main.py", allow_abbrev=False, add_help=False)
    options.add_argument("--input_file", required=True)

    def job() -> int:
        file = options.parse_known_args(argv)[0].input_file
        try:
            job = read_job(file)
        except RecursionError as error:
            fix = "The host writes this file; report it there."
            raise JobError(
                Problem("input_file", "the host's JSON", f"{file}: endless brackets", fix)
            ) from error
        return _harness_job(job)

    return guarded(job)  # without a readable file there is no job to report to


def run_task() -> int:
    """Run a job of today's host, whose SDK has the parameters.

    Returns the exit code, which the host reads.
    """
    guard_streams()
    lab = started_sdk()
    host = TaskHost(lab)

    def train() -> int:
        values = task_values(lab.get_config())
        job_id, checkpoint = str(lab.job.id), chosen_checkpoint(lab)
        run_dir = (
            Path(str(values.get("run_dir") or ROOT / "runs" / f"job-{job_id}"))
            .expanduser()
            .absolute()
        )
        if checkpoint:
            copy_checkpoint(checkpoint, run_dir)
            values |= {"run_dir": str(run_dir), "resume": "true"}
        elif not values.get("resume"):
            values["run_dir"] = str(run_dir)
        name = str(values.get("dataset_name") or "")
        # the host may put the task's files into a sub-folder
        if name and not Path(name).exists() and (ROOT / name).exists():
            values["dataset_name"] = str(ROOT / name)
        parsed = parse(values, unknown="note")
        _say_effective(host, parsed)
        return train_job(parsed, host)

    return _reporting(host, train)


def _reporting(host: JobHost, train: Callable[[], int]) -> int:
    def failed(error: JobError) -> int:
        host.failed(error.problems)
        return error.code

    return guarded(train, failed)


def _say_effective(host: JobHost, parsed: Parsed) -> None:
    host.line("effective values:")
    for name, value in parsed.params.as_json().items():
        host.line(f"  {name} = {json.dumps(value, ensure_ascii=False)}")


def _harness_job(job: TlabJob) -> int:
    host = TlabHost(job)

    def train() -> int:
        parsed = _tlab_parameters(job, host)
        _say_effective(host, parsed)
        return train_job(parsed, host)

    return _reporting(host, train)


def _tlab_parameters(job: TlabJob, host: TlabHost) -> Parsed:
    """Parse the form's values and add the host's own settings. Raises JobError."""
    values, ignored = form_values(job)
    parsed = parse(values, unknown="note")
    params = parsed.params
    check_architecture(params, str(job.config.get("model_architecture") or ""))
    update: dict[str, object] = {"dataset_name": _dataset(job, params.dataset_name, host)}
    update["adaptor_name"] = adaptor_name(job, params.adaptor_name)
    if job.sweep_run:
        if params.eval_strategy == "no":
            fix = "A sweep compares eval/loss."
            raise JobError(Problem("eval_strategy", "steps or epoch in a sweep", "no", fix))
        update["fuse_model"] = False  # the host trains the best one again and keeps that
    if params.log_to_wandb and not params.wandb_project:
        update["wandb_project"] = os.environ.get("WANDB_PROJECT", "") or job.experiment
    return replace(parsed, params=params.model_copy(update=update), notes=(*ignored, *parsed.notes))


def _dataset(job: TlabJob, spec: str, host: TlabHost) -> str:
    """Return the path of a data set of the host, or a mixture of such paths.

    A folder of the workspace is found without the SDK, which takes ten seconds to import. Only
    other names need it before the workers start.
    """
    return _in_workspace(job, spec) or renamed_mixture(
        spec, lambda name: _in_workspace(job, name) or TlabSdk(host.line).dataset_path(name)
    )


def _in_workspace(job: TlabJob, name: str) -> str:
    """Return the path of a data set in the workspace; empty for one elsewhere."""
    folder = job.workspace / "datasets" / secure_filename(name)
    if (
        secure_filename(name)
        and folder.is_dir()
        and any(path.name != "index.json" for path in folder.iterdir())
    ):
        return str(folder)
    return name if os.path.isabs(name) and Path(name).exists() else ""
