"""Contents of job files: YAML that `train --config` takes, checked before it is written or run."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml

from ..base.errors import JobError, Problem
from ..base.files import Version, version
from ..config.aliases import ALIASES
from ..config.fields import yes_or_no
from ..config.params import SCHEMA, Params
from ..config.parse import ADVANCED, expand_advanced, parse
from ..config.stages import (
    PREVIOUS,
    STAGES,
    Values,
    canonical,
    of_the_run,
    parse_stages,
    with_typed,
)
from ..parent.paths import with_full_paths
from ..run.asked import config_values

PATHS = ("model_name", "init_from", "tokenizer_name", "model_config", "start_from", "dataset_name")
_NEW = Path("new")  # stands for a run folder that has no name yet


@dataclass(frozen=True, kw_only=True)
class CheckedJob:
    """A job file without a mistake."""

    stages: tuple[Params, ...]  # one, unless the file has stages
    run_dir: Path | None  # None where the file leaves it open
    given_folder: bool  # the file says run_dir or resume: train gets no other


def read_job_file(path: Path) -> CheckedJob:
    """Read a job file. Raises JobError with every problem.

    A worker looks at every waiting file each second: one that has not changed is not read again.
    """
    try:
        job = _read(path, version(path))
    except OSError as error:
        raise JobError(Problem("config", "a job file", f"{path}: {error.strerror}")) from error
    if isinstance(job, tuple):
        raise JobError(*job)
    return job


@lru_cache(maxsize=1024)
def _read(path: Path, seen: Version) -> CheckedJob | tuple[Problem, ...]:
    """Return a job, or its problems; `seen` tells two states of its file apart."""
    try:
        return check_values(config_values(str(path)), beside=path.parent)
    except JobError as error:
        return error.problems


def check_values(values: Values, *, typed: Collection[str] = (), beside: Path) -> CheckedJob:
    """Parse the values of a job. Raises JobError with every problem.

    `typed`: names that a person typed. `beside`: the folder of files that a stage names.
    """
    if STAGES in values:
        stages = parse_stages(
            values, {}, _NEW, lambda path: config_values(str(_beside(beside, path)))
        )
        found = tuple(stage.parsed.params for stage in stages)
    else:
        found = (parse(values, typed=canonical(typed)).params,)
    run_dir, resume = _folder_of(values)
    return CheckedJob(stages=found, run_dir=run_dir, given_folder=bool(run_dir or resume))


def _folder_of(values: Values) -> tuple[Path | None, bool]:
    """Return (the run folder that the values name, whether they resume it)."""
    asked = of_the_run(values, {})
    resume = str(yes_or_no(asked.get("resume") or "false"))
    name = asked.get("run_dir") or ("" if resume in ("true", "false") else resume)
    if not name:
        return None, resume != "false"
    path = Path(name).expanduser().absolute()
    is_checkpoint = resume != "false" and re.fullmatch(r"checkpoint-\d+", path.name)
    return path.parent if is_checkpoint else path, resume != "false"


def _beside(folder: Path, name: str) -> Path:
    return folder / Path(name).expanduser()


def full_values(values: Values, beside: Path) -> dict[str, object]:
    """Return checked values with absolute paths: a worker reads them from another folder.

    Raises JobError (exit 2) where a path cannot be written out.
    """
    whole = expand_advanced(values, []) if ADVANCED in values else dict(values)
    full = whole | _full_paths(whole)
    for name in canonical(whole) & {"run_dir", "resume"}:
        given = next(one for one in whole if ALIASES.get(one, one) == name)
        if (value := whole[given]) and yes_or_no(value) not in ("true", "false"):
            full[given] = str(Path(str(value)).expanduser().absolute())
    if "config" in full:  # of a stage
        full["config"] = str(_beside(beside, str(full["config"])).absolute())
    if isinstance(stages := full.get(STAGES), list):
        full[STAGES] = [
            full_values(cast("Values", stage), beside) for stage in cast("list[object]", stages)
        ]
    return full


def _full_paths(values: Values) -> dict[str, object]:
    """Return the paths among these values, each as train would write it into run.json."""
    given = {name: ALIASES.get(name, name) for name in values}
    paths = {
        given[name]: str(value).strip()
        for name, value in values.items()
        if value and given[name] in PATHS and value != PREVIOUS
    }
    full = with_full_paths(Params.model_validate(paths)).as_json()
    return {name: full[own] for name, own in given.items() if own in paths}


def default_name(values: Values) -> str:
    """Return the name of a job whose starter gave none: that of its adapter."""
    names = [name for name in values if ALIASES.get(name, name) == "adaptor_name"]
    return str(values[names[0]]) if names else str(SCHEMA["adaptor_name"]["default"])


def typed_over(content: Values, typed: Values, beside: Path) -> Values:
    """Return the values of a job: `typed` ones over those of a --config file, in each stage too.

    `beside`: the folder of files that a stage names. Raises JobError (exit 2) for wrong stages.
    """
    return with_typed(content, typed, lambda path: config_values(str(_beside(beside, path))))


class _Written(yaml.SafeDumper):
    """YAML without aliases, which configuration files may not hold."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(values: Values) -> str:
    """Return the text of a configuration file with these values."""
    return yaml.dump(
        _plain(values), Dumper=_Written, sort_keys=False, allow_unicode=True, width=1 << 20
    )


def _plain(value: object) -> object:
    """Return lists, objects, numbers, switches and texts; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in cast("Values", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("list[object]", value)]
    return value if isinstance(value, bool | int | float | None) else str(value)
