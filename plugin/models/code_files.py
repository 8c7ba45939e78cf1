"""Modelling code in a published folder, so that plain transformers loads families that are not its
own.

A base's own files, which its config.json names in `auto_map`, are copied and never run. Where they
are missing, and for a model from scratch, this project's code for the family is written: files that
import torch and transformers alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..config.model_files import is_own_file

# module.Class of a file in the folder; `org/name--module.Class` is the hub's.
_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.[A-Za-z_]\w*")
_AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")
_HERE = Path(__file__).parent

# model_type -> (file here, its configuration, its model). Each imports parts.py of this folder and
# nothing else of ours.
_OURS = {
    "llada": ("llada", "LLaDAConfig", "LLaDAModelLM"),
    "Dream": ("dream", "DreamConfig", "DreamModel"),
}


def write_code_files(folder: Path, base: Path | None) -> None:
    """Make `auto_map` of the model in `folder` true:

    `base`'s files where it has them all, else this project's own, else none.
    """
    config_file = folder / "config.json"
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    model_type = config["model_type"]
    if files := _files_of(config.get("auto_map"), base):
        for file in files:
            shutil.copy(file, folder / file.name)
        return
    named = config.pop("auto_map", None)
    if model_type in _OURS:
        module, configuration, model = _OURS[model_type]
        shutil.copy(_HERE / f"{module}.py", folder / f"modeling_{module}.py")
        shutil.copy(_HERE / "parts.py", folder / "parts.py")
        config["auto_map"] = {"AutoConfig": f"modeling_{module}.{configuration}"} | dict.fromkeys(
            _AUTO_MODELS, f"modeling_{module}.{model}"
        )
    if config.get("auto_map") != named:
        config_file.write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _files_of(auto_map: object, base: Path | None) -> list[Path]:
    """The files of `base` that an auto_map needs, those that they import included; empty unless all
    are there.
    """
    if base is None or not isinstance(auto_map, Mapping):
        return []
    references = [value for value in auto_map.values() if isinstance(value, str)]
    matches = [_REFERENCE.fullmatch(reference) for reference in references]
    if not matches or not all(matches):
        return []
    files = {base / f"{match[1]}.py" for match in matches if match}
    if not all(map(is_own_file, files)):
        return []
    files |= {Path(imported) for file in files for imported in get_relative_import_files(file)}
    return sorted(files) if all(file.parent == base and is_own_file(file) for file in files) else []
