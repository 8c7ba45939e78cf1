"""Folders written by save_to_disk of `datasets`: their data files by use.

A Dataset's state.json names its data files in order; other files next to them (the caches of map,
filter and shuffle) hold none of its rows. A DatasetDict's dataset_dict.json names its splits, each
of them such a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from ...base.errors import data_error, first_line
from .columns import FIELD

STATE, SPLITS = "state.json", "dataset_dict.json"
# Names that `datasets` uses; the first eval split that exists is used.
TRAIN_SPLITS, EVAL_SPLITS = ("train",), ("validation", "valid", "val", "dev", "test", "eval")

_AGAIN = "Save it again with save_to_disk."

Files = dict[Literal["train", "eval", "skipped"], list[Path]]


def saved_files(folder: Path) -> Files | None:
    """Sort the files of a saved folder by use; return None for any other folder.

    Raises JobError (exit 3).
    """
    if (folder / SPLITS).is_file():
        return _of_splits(folder)
    named = _data_files(folder) if (folder / STATE).is_file() else None
    if named is None:
        return None
    skipped = [child for child in _children(folder) if child.is_file() and child not in named]
    return {"train": named, "eval": [], "skipped": skipped}


def _of_splits(folder: Path) -> Files:
    found = _json(folder / SPLITS).get("splits")
    splits = [str(split) for split in found] if isinstance(found, list) else []
    train = next(
        (split for split in TRAIN_SPLITS if split in splits),
        splits[0] if len(splits) == 1 else None,
    )
    if train is None:
        fix = "Name the folder of the split to train on."
        got = f"the splits {', '.join(splits) or 'none'}"
        raise data_error(FIELD, f"a split 'train' in {folder}", got, fix)
    held = next((split for split in EVAL_SPLITS if split in splits and split != train), None)
    files: Files = {"train": [], "eval": [], "skipped": []}
    for child in _children(folder):
        use = "train" if child.name == train else "eval" if child.name == held else None
        if use is None:
            files["skipped"].append(child)
            continue
        inner = saved_files(child) if child.is_dir() else None
        if inner is None:
            expected = f"a saved dataset with {STATE} in {child}"
            raise data_error(FIELD, expected, "none", _AGAIN)
        files[use] += inner["train"]
        files["skipped"] += inner["skipped"]
    if not files["train"]:
        expected = f"the folder of split {train!r} in {folder}"
        raise data_error(FIELD, expected, "none", _AGAIN)
    return files


def _data_files(folder: Path) -> list[Path] | None:
    """List the files that state.json names; return None if another program wrote it."""
    state = _json(folder / STATE)
    if "_data_files" not in state:
        return None
    again = "Load it with datasets and save it again with save_to_disk."
    for name in ("_indices_files", "_indices_data_files"):
        if state.get(name):
            expected = f"{folder} saved with its rows in order"
            raise data_error(FIELD, expected, f"rows reordered by {name} in {STATE}", again)
    entries = state["_data_files"]
    names = (
        [entry.get("filename") for entry in entries if isinstance(entry, dict)]
        if isinstance(entries, list)
        else []
    )
    files = [folder / str(name) for name in names]
    for file in files:
        if file.parent != folder or not file.is_file():
            expected = f"the files that {folder / STATE} names"
            raise data_error(FIELD, expected, f"{file.name}, which is missing", again)
    return files


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    except OSError as error:
        got = f"{folder}: {error.strerror or error}"
        raise data_error(FIELD, "a folder that can be read", got) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = f"{path}: {first_line(error)}"
        raise data_error(FIELD, f"a readable {path.name}", got) from error
    return value if isinstance(value, dict) else {}
