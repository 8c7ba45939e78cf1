"""Data folders: files to train on, files to evaluate on, and files that are not read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...base.errors import Code, Problem, data_error
from ..stored.manifest import is_prepared, is_stored
from .columns import FIELD
from .compressed import TEXTS, data_suffix, is_compressed
from .readers import READERS
from .saved import saved_files

Split = Literal["train", "eval"]

COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"}
_KNOWN = ", ".join(READERS)
_UNPACK = f"Unpack it; {', '.join(TEXTS)} may be packed as .gz or .zst."
_EVAL_WORD = "(?:eval|valid|validation|val|test|dev)"
_EVAL_STEM = re.compile(rf"{_EVAL_WORD}(?![a-z0-9])|.*(?<![a-z0-9]){_EVAL_WORD}$", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-\d+$")
# Files that Transformer Lab and `datasets` write next to the data. Read as rows, they would spoil
# the columns.
_CACHE = re.compile(r"cache-.*\.arrow")  # written by map, filter and shuffle of `datasets`
_METADATA = {
    "index.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}


def folder_files(folder: Path) -> dict[str, list[Path]]:
    """Sort the files of a folder by use: train, eval, skipped.

    Sub-folders are searched too, except hidden and linked ones, runs and prepared ones. In a folder
    that `datasets` saved, only the files it names are data. If every file has an eval name, the
    user chose that folder to train on: all are train. Raises JobError (exit 3).
    """
    if (saved := saved_files(folder)) is not None:
        return {**saved}
    files = sorted(_files(folder))
    data = [file for file in files if _is_data(file)]
    held_out = [file for file in data if _is_eval_in(folder, file)]
    if len(held_out) == len(data):
        held_out = []
    return {
        "train": [file for file in data if file not in held_out],
        "eval": held_out,
        "skipped": [file for file in files if file not in data],
    }


def _files(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        got = f"{error.filename}: {error.strerror or error}"
        raise data_error(FIELD, "a folder that can be read", got) from error

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not _is_apart(Path(parent, name))]
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def _is_apart(folder: Path) -> bool:
    """Tell a sub-folder that is no part of the data: a hidden one, a run's, a prepared one."""
    return folder.name.startswith(".") or (folder / "run.json").exists() or is_stored(folder)


def _is_eval_in(folder: Path, file: Path) -> bool:
    """Tell an eval file by its own name or by that of a sub-folder."""
    parents = file.relative_to(folder).parts[:-1]
    return is_eval(file) or any(_EVAL_STEM.fullmatch(name) for name in parents)


def is_eval(path: Path) -> bool:
    """Tell an eval file by its name.

    Its name begins or ends with eval, valid, validation, val, test or dev as a separate word.
    """
    stem = Path(path.stem).stem if is_compressed(path) else path.stem
    return bool(_EVAL_STEM.match(_SHARD.sub("", stem)))


def path_problem(path: Path) -> Problem | None:
    """Return the problem (exit 3) of an existing path without data; None if it has data."""
    if is_prepared(path):
        return None
    if path.is_dir():
        return _folder_problem(path)
    suffix = data_suffix(path)
    if path.is_file() and suffix in READERS:
        return None
    if suffix in COMPRESSED:
        return Problem(FIELD, f"a {_KNOWN} file", str(path), _UNPACK, Code.DATA)
    fix = "Dataset scripts are never run; save the rows to a file." if suffix == ".py" else ""
    return Problem(FIELD, f"a {_KNOWN} file or a folder", str(path), fix, Code.DATA)


def _folder_problem(folder: Path) -> Problem | None:
    files = folder_files(folder)
    packed = [file.name for file in files["skipped"] if file.suffix.lower() in COMPRESSED]
    if packed:
        expected = f"{_KNOWN} files in {folder}"
        return Problem(FIELD, expected, ", ".join(packed), _UNPACK, Code.DATA)
    if not files["train"]:
        return Problem(
            FIELD, f"a folder with {_KNOWN} files", f"{folder} with none", code=Code.DATA
        )
    return None


def _is_data(file: Path) -> bool:
    known = data_suffix(file) in READERS and file.name not in _METADATA
    return known and not file.name.startswith(".") and not _CACHE.fullmatch(file.name)
