"""Documents of a prepared folder, read where they lie: whole, and without special tokens.

S documents of a shard. Nothing is kept in memory for a document. Documents are read, not mapped: in
random order every page of a mapping would soon count as memory of the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...base.digests import file_digest
from ...base.errors import JobError, data_error, first_line, one_line
from ...base.files import open_plain
from ...base.redact import redact
from ..files.columns import FIELD
from .manifest import Manifest, Shard, Split

VERIFIED = 4 << 30  # bytes of ids whose digests are compared at the start of a run
OPEN_SHARDS = 128  # at a time; each holds two file descriptors
_AGAIN = "Restore the file, or prepare the folder again into another one."


class StoredSplit:
    """The documents of one split, numbered over its shards in order."""

    def __init__(self, folder: Path, manifest: Manifest, split: Split):
        self._folder, self._manifest = folder, manifest
        self.shards = tuple(shard for shard in manifest.shards if shard.split == split)
        self._ends = np.cumsum([shard.documents for shard in self.shards], dtype=np.int64)
        self._spans = [self._span(source) for source in range(len(manifest.sources))]
        self._opened = lru_cache(OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def tokens(self, document: int) -> NDArray[Any]:
        """Return the ids of a document, [T]. Raises JobError (exit 3) if they are gone."""
        shard, place = self._place(document)
        ids, offsets = self._opened(shard)
        start, end = offsets.read(place, 2).tolist()
        return ids.read(start, end - start)

    def row(self, document: int) -> str:
        """Return the row that a document comes from, such as `a.jsonl:7`."""
        number, place = self._place(document)
        shard = self.shards[number]
        file, row = _mapped(shard.file(self._folder, "source"))[place].tolist()
        files = self._manifest.sources[shard.source].files
        name = files[file].name if 0 <= file < len(files) else f"file {file}"
        return f"{redact(one_line(name))}:{row}"

    def lengths(self) -> Iterator[NDArray[np.int64]]:
        """Yield the tokens of each document, shard by shard, [S]; no ids are read."""
        for shard in self.shards:
            yield np.diff(_mapped(shard.file(self._folder, "offsets")))

    @property
    def sizes(self) -> list[int]:
        """Return the documents of each source."""
        sizes = [0] * len(self._manifest.sources)
        for shard in self.shards:
            sizes[shard.source] += shard.documents
        return sizes

    def numbers(
        self, sources: NDArray[np.int64], documents: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the numbers of documents that are counted within their sources, [documents]."""
        found = np.empty_like(documents)
        for source in np.unique(sources).tolist():
            first, ends = self._spans[source]
            own = sources == source
            shard = np.searchsorted(ends, documents[own], side="right")
            found[own] = documents[own] + first[shard]
        return found

    def _span(self, source: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, for each shard of a source, (its documents' numbers less those within the source,
        the source's documents up to its end), [shards].
        """
        own = [place for place, shard in enumerate(self.shards) if shard.source == source]
        ends = np.cumsum([self.shards[place].documents for place in own], dtype=np.int64)
        return self._ends[own] - ends, ends

    def _place(self, document: int) -> tuple[int, int]:
        """Return (shard, document of it)."""
        if not 0 <= document < len(self):
            raise IndexError(document)
        shard = int(np.searchsorted(self._ends, document, side="right"))
        return shard, document - int(self._ends[shard]) + self.shards[shard].documents

    def _open(self, number: int) -> tuple[_Array, _Array]:
        shard = self.shards[number]
        return _Array(shard.file(self._folder, "ids")), _Array(shard.file(self._folder, "offsets"))


class _Array:
    """An open file of one array [items], of which a few items are read at a time."""

    def __init__(self, path: Path):
        mapped = _mapped(path)
        self._path, self._dtype = path, mapped.dtype
        self._start = path.stat().st_size - mapped.nbytes  # the header's bytes
        self._descriptor = open_plain(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, first: int, items: int) -> NDArray[Any]:
        """Return `items` items, read-only."""
        size = self._dtype.itemsize
        content = os.pread(self._descriptor, items * size, self._start + first * size)
        if len(content) != items * size:
            raise _foreign(self._path, f"it ends before item {first + items}")
        return np.frombuffer(content, self._dtype)


def check_shards(folder: Path, manifest: Manifest) -> str:
    """Compare the shards with the manifest: shapes and sizes, and digests up to VERIFIED bytes.

    Returns a note if the digests were not compared, else an empty string. Raises JobError (exit 3)
    for the first shard that is not what was written.
    """
    for shard in manifest.shards:
        _check_shapes(folder, manifest, shard)
    size = sum(shard.tokens for shard in manifest.shards) * np.dtype(manifest.dtype).itemsize
    if size > VERIFIED:
        return (
            f"the {size / 1e9:.0f} GB of ids are compared by size alone; "
            "`prepare --verify` compares their content"
        )
    for shard in manifest.shards:
        check_digest(folder, shard)
    return ""


def check_digest(folder: Path, shard: Shard) -> None:
    """Compare the ids of a shard with its digest. Raises JobError (exit 3)."""
    path = shard.file(folder, "ids")
    try:
        found = file_digest(path)
    except OSError as error:
        raise _foreign(path, error.strerror or str(error)) from error
    if found != shard.blake2b:
        raise _foreign(path, "its content was changed")


def _check_shapes(folder: Path, manifest: Manifest, shard: Shard) -> None:
    wanted = {
        "ids": ((shard.tokens,), manifest.dtype),
        "offsets": ((shard.documents + 1,), "int64"),
        "source": ((shard.documents, 2), "int64"),
    }
    for part, (shape, dtype) in wanted.items():
        path = shard.file(folder, part)
        array = _mapped(path)
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            got = f"{dtype}{list(shape)} expected, {array.dtype}{list(array.shape)} found"
            raise _foreign(path, got)
    path = shard.file(folder, "offsets")
    offsets = _mapped(path)
    rises = bool(np.all(offsets[1:] >= offsets[:-1]))
    if not rises or (int(offsets[0]), int(offsets[-1])) != (0, shard.tokens):
        raise _foreign(path, f"the offsets do not rise from 0 to {shard.tokens}")


def _mapped(path: Path) -> NDArray[Any]:
    """Map an array, read-only. Raises JobError (exit 3) for what is not one."""
    try:
        loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _foreign(path, first_line(error)) from error
    if not isinstance(loaded, np.ndarray):
        raise _foreign(path, "it holds no array")
    return cast("NDArray[Any]", loaded)


def _foreign(path: Path, why: str) -> JobError:
    return data_error(FIELD, "the shards that prepare wrote", f"{path}: {why}", _AGAIN)
