"""What a model folder must hold, looked at without loading anything, so that the parent can refuse it before a run begins."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .families import FAMILIES, Family
from .job import JobError, Problem, model_error
from .params import Params

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = (".json", ".yaml", ".safetensors", ".gguf", ".bin", ".pt")
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check_model_files(name: str) -> None:
    """Raises JobError (exit 4) for a folder without config.json or safetensors weights. A name that is no folder is a hub id."""
    folder = Path(name).expanduser()
    if not folder.exists():
        refuse_missing_path("model_name", name)
        return
    if not (folder / "config.json").is_file():
        raise model_error("model_name", "a folder with config.json", name)
    if any(folder.glob("*.safetensors")):
        return
    unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in _UNSAFE)
    convert = "Convert once with transformers' save_pretrained in a place you trust; pickled weights can run code."
    raise model_error(
        "model_name", "safetensors weights", f"{name}: {', '.join(unsafe) or 'no weights'}", convert if unsafe else ""
    )


def refuse_missing_path(field: str, name: str) -> None:
    """Raises JobError (exit 4) for a path that does not exist, so that no hub is asked for it. A hub id is NAME or OWNER/NAME."""
    is_path = name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name) or Path(name).suffix in _FILES
    owner = Path(name).parent  # of a hub id; runs/mine and mine/fused are none
    of_runs = name.startswith("runs/") or (owner.name and any((*owner.glob("run.json"), *owner.glob("*/run.json"))))
    if (is_path or of_runs) and not Path(name).expanduser().exists():
        raise model_error(field, "a folder that exists, or a hub id", f"{name}, which is not there")


def check_method(params: Params) -> None:
    """Raises JobError (exit 2) when a configuration on this machine is of another method's family. Others are left to the worker."""
    named = Path(params.model_config_file) if params.model_config_file else Path(params.model_name) / "config.json"
    try:
        family = FAMILIES.get(json.loads(named.expanduser().read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if family:
        refuse_other_methods(family, params.training_method)


def check_architecture(params: Params, architecture: str) -> None:
    """Raises JobError (exit 2) when the host says that the base, a hub id, is of another method's family."""
    if params.model_name and not Path(params.model_name).expanduser().exists():
        for family in FAMILIES.values():
            if family.architecture == architecture:
                refuse_other_methods(family, params.training_method)


def refuse_other_methods(family: Family, method: str) -> None:
    """Raises JobError (exit 2) when `method` is not the one of this family."""
    if family.method != method:
        fix = f"Set training_method {family.method}, or choose another model."
        raise JobError(Problem("training_method", f"{family.method} for a {family.architecture}", method, fix))
