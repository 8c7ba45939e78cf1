"""Input file of the plugin-era Transformer Lab: the form's values, and the paths of results.

It is read here and not through the SDK, whose own defaults win over the form's values. Nothing in
this file imports the SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from werkzeug.utils import secure_filename

from ...base.errors import JobError, Problem
from ...config.aliases import ALIASES
from ...config.fields import yes_or_no
from ...config.params import SCHEMA
from ...config.parse import expand_advanced

# Keys that the host sends for itself, in addition to the form's fields.
HOST_KEYS = {
    *(
        "template_name",
        "plugin_name",
        "type",
        "job_id",
        "adaptor_output_dir",
        "output_dir",
        "run_sweeps",
        "sweep_config",
    ),
    *(
        "model_architecture",
        "foundation_model_file_path",
        "embedding_model",
        "embedding_model_architecture",
    ),
    *("embedding_model_file_path", "chatml_formatted_column"),
}
# eval/loss of a run that must not win a sweep: the host minimises, and reads a missing file as 0.0
WORST = 1e30


@dataclass(frozen=True)
class TlabJob:
    """One job of the host."""

    job_id: str
    template: str  # any text that a user typed
    experiment: str
    workspace: Path
    output_dir: Path  # where the host reads metrics.json and TensorBoard events
    adaptors: Path  # where the host lists those of the job's base model
    sweep_run: str  # number of the run in a sweep; empty outside of a sweep
    config: Mapping[str, Any]  # the form's values and the host's own

    @property
    def folder(self) -> Path:
        return self.workspace / "jobs" / self.job_id

    @property
    def run_dir(self) -> Path:
        """Return a run folder named by the job: a template queued again gets a new one."""
        return self.folder / (f"run_{self.sweep_run}" if self.sweep_run else "run")


def read_job(path: str) -> TlabJob:
    """Read an input file. Raises JobError (exit 2) for any other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        config: dict[str, Any] = dict(content["config"])
        job_id, output_dir = str(config["job_id"]), str(config["output_dir"]).rstrip("/")
        experiment = str(content["experiment"]["name"])
        adaptors = Path(str(config["adaptor_output_dir"]))
        if (
            config.get("adaptor_name", "") != "" or "adaptor_name" not in config
        ):  # the path ends in that name, or the host's own
            adaptors = adaptors.parent
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"{path}: {type(error).__name__} {error}"
        fix = "The host writes this file; report it there."
        raise JobError(
            Problem("input_file", "the host's JSON with experiment and config", got, fix)
        ) from error
    found = re.match(r"(.*)/experiments/[^/]+/tensorboards/.", output_dir)
    if not found:
        raise JobError(
            Problem(
                "output_dir",
                "<workspace>/experiments/<experiment>/tensorboards/<template>",
                output_dir,
            )
        )
    sweep = re.search(rf"/sweep_{re.escape(job_id)}/run_(\d+)$", output_dir)
    return TlabJob(
        job_id=job_id,
        template=str(config.get("template_name", "")),
        experiment=experiment,
        workspace=Path(found[1]),
        output_dir=Path(output_dir),
        adaptors=adaptors,
        sweep_run=sweep[1] if sweep else "",
        config=config,
    )


def form_values(job: TlabJob) -> tuple[dict[str, Any], list[str]]:
    """Return the values for `parse`, and notes on those left out.

    A form carries the values of whichever plugin made the template first. An alias counts only if
    the parameter's own name is missing.
    """
    values: dict[str, Any] = {"run_dir": "" if _resumes_elsewhere(job) else str(job.run_dir)}
    notes: list[str] = []
    for name, value in job.config.items():
        target = ALIASES.get(name, name)
        if name in HOST_KEYS or name == "run_dir":
            continue
        if name != target and (target == "run_dir" or target in job.config):
            notes.append(f"{name}: ignored, as {target} is given.")
        elif isinstance(value, list | dict):
            notes.append(
                f"{name}: ignored, a {type(value).__name__} is not a value of this plugin's form."
            )
            if name in SCHEMA:
                raise JobError(Problem(name, "one value", f"a {type(value).__name__}"))
        else:
            values[name] = value
    return values, notes


def _resumes_elsewhere(job: TlabJob) -> bool:
    """Tell whether `resume` names another job's run, which is then resumed in its own folder."""
    asked = str(expand_advanced(job.config, []).get("resume", "")).strip()
    return yes_or_no(asked) not in ("", "false", "true")


def adaptor_name(job: TlabJob, given: str) -> str:
    """Return the name of the job's results: the template's, unless the user chose another."""
    chosen = given if given != SCHEMA["adaptor_name"]["default"] else secure_filename(job.template)
    return chosen.lstrip("._-")[:64] or given


def viewer_dir(job: TlabJob, safe_name: str) -> Path:
    """Return the folder that the host's TensorBoard button opens.

    It is `output_dir` with the template's name as `secure_filename` writes it.
    """
    boards = job.workspace / "experiments"
    experiment, tensorboards, _, *rest = job.output_dir.relative_to(boards).parts
    return boards.joinpath(experiment, tensorboards, *([safe_name] if safe_name else []), *rest)
