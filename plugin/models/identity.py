"""The identity of weights, as one short digest, and the way from an adapter to the base it was
trained on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers.utils import cached_file

from ..base.errors import model_error
from ..config.model_files import WEIGHTS_INDEX
from ..run.facts import AdapterBase
from .weights import weight_files

SAMPLES, SAMPLE_BYTES = 16, 65_536


def local_folder(name: str) -> Path:
    """The folder of a model that was loaded before, hub ids included."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    config = cached_file(name, "config.json")
    assert config, "cached_file raises when a file is missing"
    return Path(config).parent


def base_digest(name: str) -> str:
    """Return 16 hex digits over names, sizes and samples of the weight files; reading all of an 8B
    model would take minutes.

    They are the files that `load_model` loads. Raises OSError where they are not here, JobError
    (exit 4) as it does.
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
    """The folder or hub id of an adapter's base: `given`, else what the run beside it was started
    with, else the recorded name.

    `recorded` is the adapter's `base` in diffusion.json, whose name holds no path. Raises JobError
    (exit 4) where nothing is there, or other weights than it was trained on.
    """
    name = given or _base_of_run(adapter.parent / "run.json") or recorded.name
    try:
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
    """Return the base that a run was started with; empty where the file is not a run's."""
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["params"]["model_name"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
