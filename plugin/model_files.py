"""What a model folder must hold, looked at without loading anything, so that the parent can refuse it before a run begins."""

from __future__ import annotations

import json
from pathlib import Path

from .families import FAMILIES, Family
from .job import JobError, Problem, model_error
from .params import Params

_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check_model_files(name: str) -> None:
    """Raises JobError (exit 4) for a folder without config.json or safetensors weights. A name that is no folder is a hub id."""
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")):
            raise model_error("model_name", "a folder that exists", name)
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
