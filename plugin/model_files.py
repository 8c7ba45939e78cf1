"""What a model folder must hold, looked at without loading anything, so that the parent can refuse it before a run begins."""

from __future__ import annotations

from pathlib import Path

from .job import model_error

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
