"""Manifest of a prepared folder: its sources, its tokenizer and its shards.

`prepare` writes the manifest last, so a folder without one was never finished. Imports no numpy,
because the parent reads it too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...base.errors import JobError, data_error, first_line
from ...base.files import open_plain
from ..files.columns import FIELD

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"  # sub-folder, as save_pretrained writes it
WORK = ".work"  # sub-folder of a run of `prepare`
FORMAT = 1
_MOST_BYTES = 1 << 28  # of a manifest: about a million shards
_MARKS = {"format", "key", "shards", "tokenizer"}  # keys that no other manifest.json has together
PARTS = ("ids", "offsets", "source")  # files of a shard
_AGAIN = "Prepare it again into another folder."

Split = Literal["train", "eval"]


class _Part(BaseModel):
    """A part of a manifest; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StoredFile(_Part):
    """A file that documents come from."""

    name: str
    bytes: int = 0
    blake2b: str = ""


class SourceFacts(_Part):
    """A part of the mixture that was prepared."""

    spec: str
    weight: float = Field(default=1.0, gt=0)
    files: tuple[StoredFile, ...]
    rows: int = 0
    documents: int = 0
    tokens: int = 0
    bad: dict[str, int] = {}


class TokenizerFacts(_Part):
    """The tokenizer whose ids are stored."""

    digest: str
    vocab_size: int


class SplitFacts(_Part):
    """The choice of the documents held out for evaluation."""

    eval_share: float
    seed: int
    eval_documents: int = 0


class Shard(_Part):
    """Documents of one source in one split; its files are named `<split>/<name>.<part>.npy`."""

    split: Split
    name: str = Field(pattern=r"^[0-9]+$")
    source: int = Field(ge=0)  # place among the sources
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    blake2b: str  # of the ids file, 32 hex digits

    def file(self, folder: Path, part: str) -> Path:
        """Return the path of one of the shard's PARTS."""
        return folder / self.split / f"{self.name}.{part}.npy"


class StoredTotals(_Part):
    """Sums over all shards."""

    documents: int
    tokens: int
    bytes: int = 0
    longest: int = 0


class Manifest(_Part):
    """Content of manifest.json, as far as a reader needs it."""

    format: int
    key: str  # digest of everything that shaped the folder
    sources: tuple[SourceFacts, ...]
    tokenizer: TokenizerFacts
    dtype: Literal["uint16", "uint32"]
    split: SplitFacts
    shards: tuple[Shard, ...]
    totals: StoredTotals


def is_stored(path: Path) -> bool:
    """Tell a folder with a manifest of `prepare`, of this format or another."""
    try:
        found = _parsed(_content(path))
    except (OSError, ValueError, RecursionError):
        return False
    return found.keys() >= _MARKS


def is_unfinished(path: Path) -> bool:
    """Tell a folder in which `prepare` began and did not finish."""
    return (path / WORK).is_dir() and not (path / MANIFEST).exists()


def is_prepared(path: Path) -> bool:
    """Tell a folder of `prepare`, finished or not."""
    return is_unfinished(path) or is_stored(path)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder and look for the files that it names.

    Raises JobError (exit 3) for a folder that is not finished, of another format or incomplete.
    """
    if is_unfinished(folder):
        got = f"{folder}: prepare did not finish here"
        fix = "Run it again with the same --out."
        raise data_error(FIELD, "a finished folder of prepare", got, fix)
    try:
        values = _parsed(_content(folder))
        version = values.get("format")
        if version != FORMAT:
            expected, got = f"a prepared folder of format {FORMAT}", f"{folder} of format {version}"
            raise data_error(FIELD, expected, got, _AGAIN)
        manifest = Manifest.model_validate(values)
    except JobError:
        raise
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"]))
        raise _unreadable(folder, f"{where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, first_line(error)) from error
    _check_shards(folder, manifest)
    return manifest


def manifest_digest(folder: Path) -> str:
    """Return a digest of the manifest, which names the content of every shard: 32 hex digits.

    Raises JobError as `read_manifest` does.
    """
    key = read_manifest(folder).key
    return hashlib.blake2b(key.encode() + b"\0" + _content(folder), digest_size=16).hexdigest()


def _content(folder: Path) -> bytes:
    with open(folder / MANIFEST, "rb", opener=open_plain) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
    return content


def _parsed(content: bytes) -> dict[str, Any]:
    values: Any = json.loads(content.decode("utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    return cast("dict[str, Any]", values)


def _unreadable(folder: Path, why: str) -> JobError:
    got = f"{folder / MANIFEST}: {why}"
    return data_error(FIELD, "a manifest that prepare wrote", got, _AGAIN)


def _check_shards(folder: Path, manifest: Manifest) -> None:
    for shard in manifest.shards:
        if shard.source >= len(manifest.sources):
            raise _unreadable(folder, f"shard {shard.name} is of source {shard.source}, of none")
        for part in PARTS:
            path = shard.file(folder, part)
            if path.is_symlink() or not path.is_file():
                expected = "a prepared folder with all of its shards"
                raise data_error(FIELD, expected, f"{path}, which is missing", _AGAIN)
