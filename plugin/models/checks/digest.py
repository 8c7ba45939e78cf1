"""Digest of a model's weights, by which an adapter finds the base that it was trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers.utils import cached_file

from ...base.errors import model_error
from ...config.model_files import WEIGHTS_INDEX, is_missing_path
from ...run.facts import AdapterBase
from .weight_files import weight_files

SAMPLES, SAMPLE_BYTES = 16, 65_536


def local_folder(name: str) -> Path:
    """Return the local folder of a model folder or hub id that was loaded before."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    config = cached_file(name, "config.json")
    assert config, "cached_file raises when a file is missing"
    return Path(config).parent


def base_digest(name: str) -> str:
    """Return 16 hex digits over the names, sizes and samples of a model's weight files.

    Samples, because reading an 8B model in full takes minutes. The files are those that
    `load_model` loads. Raises OSError if they are missing here, else as `weight_files`.
    """
    digest = hashlib.blake2b(digest_size=8)
    files = weight_files(str(local_folder(name)))
    for file in sorted(files.keys() - {WEIGHTS_INDEX}):
        path = files[file]
        size = path.stat().st_size
        digest.update(f"{file}\0{size}\0".encode())
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def find_base(adapter: Path, recorded: AdapterBase, given: str = "") -> str:
    """Return the folder or hub id of an adapter's base.

    That is `given`, else the model that the adapter's own run started from, else the recorded name.
    `recorded` is the adapter's `base` in diffusion.json, whose name holds no path. Raises JobError
    (exit 4) if the base is missing or its weights are not those that the adapter was trained on.
    """
    name = given or _base_of_run(adapter.parent / "run.json") or recorded.name
    try:
        if is_missing_path(name):
            raise FileNotFoundError(name)
        digest = base_digest(name)
    except OSError as error:
        got = f"{name}, which is not here"
        raise model_error(
            "base", f"the model that {adapter} was trained on", got, "Name it with --base."
        ) from error
    if recorded.digest not in (None, digest):
        raise model_error(
            "adapter",
            f"an adapter of {name}",
            f"{adapter}, trained on {recorded.name}",
            "Give that model.",
        )
    return name


def _base_of_run(file: Path) -> str:
    """Return the model that a run.json names, empty if the file is not a run's."""
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["params"]["model_name"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
