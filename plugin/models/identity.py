"""Which weights a folder holds, in one short digest: an adapter remembers the base it was trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers.utils import cached_file

SAMPLES, SAMPLE_BYTES = 16, 65_536


def local_folder(name: str) -> Path:
    """The folder of a model that was loaded before, hub ids included."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    config = cached_file(name, "config.json", local_files_only=True)
    assert config, "cached_file raises when a file is missing"
    return Path(config).parent


def base_digest(name: str) -> str:
    """16 hex digits over names, sizes and samples of the weight files; reading all of an 8B model would take minutes."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(local_folder(name).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
