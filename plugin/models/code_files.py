"""Code in a published folder, by which plain transformers loads LLaDA, Dream and SDAR's config.

The base's own files, which its config.json names in `auto_map`, are copied and never run. If they
are missing, and for a model from scratch, this project's code for the family is copied: files that
import torch, transformers and one another alone.
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

# module.Class of a file in the folder; `org/name--module.Class` would be a file on the hub.
_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.[A-Za-z_]\w*")
_AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")
_HERE = Path(__file__).parent

# model_type -> (file here, its configuration, its model). Of our files it imports _SHARED alone.
_OURS = {
    "llada": ("llada", "LLaDAConfig", "LLaDAModelLM"),
    "Dream": ("dream", "DreamConfig", "DreamModel"),
}
_SHARED = ("masks.py", "rotary.py")
_SDAR = _HERE / "decoders" / "configuration_sdar.py"  # engines have the model, but not its config


def write_code_files(folder: Path, base: Path | None) -> None:
    """Copy the code files of the model in `folder` there, and make its `auto_map` match them.

    They are those of `base` if it has them all, else this project's, else none: models of
    transformers need none. A causal model's are always this project's.
    """
    config_file = folder / "config.json"
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    model_type = config["model_type"]
    causal = config.get("causal", False)  # a field of ours, which published code does not read
    if not causal and (files := _files_of(config.get("auto_map"), base)):
        for file in files:
            shutil.copy(file, folder / file.name)
        return
    named = config.pop("auto_map", None)
    if model_type in _OURS:
        module, configuration, model = _OURS[model_type]
        shutil.copy(_HERE / f"{module}.py", folder / f"modeling_{module}.py")
        for name in _SHARED:
            shutil.copy(_HERE / name, folder / name)
        config["auto_map"] = {"AutoConfig": f"modeling_{module}.{configuration}"} | dict.fromkeys(
            _AUTO_MODELS, f"modeling_{module}.{model}"
        )
    elif model_type == "sdar":
        shutil.copy(_SDAR, folder / _SDAR.name)
        config["auto_map"] = {"AutoConfig": f"{_SDAR.stem}.SDARConfig"}
    if config.get("auto_map") != named:
        config_file.write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _files_of(auto_map: object, base: Path | None) -> list[Path]:
    """Return the files of `base` that an auto_map needs, imported ones included.

    Empty unless all of them exist.
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
