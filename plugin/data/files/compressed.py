"""Compressed text files, read as a stream."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import IO, Any, cast

COMPRESSIONS = (".gz", ".zst")
TEXTS = (".jsonl", ".json", ".csv", ".txt")  # kinds of file that may be compressed


def data_suffix(path: Path) -> str:
    """Return the suffix that names a file's kind: `.jsonl` of `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in COMPRESSIONS and suffixes[0] in TEXTS:
        return suffixes[0]
    return path.suffix.lower()


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading; one with the suffix of a compression is unpacked as it is read."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow as pa  # imported here, so that other files do not need it

        stream: Any = pa.CompressedInputStream(pa.OSFile(os.fsencode(path)), "zstd")
        return io.BufferedReader(stream, 1 << 16)
    return path.open("rb")


# What a cut or damaged file raises while it is unpacked.
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)


def unpacking_failure(error: Exception) -> str:
    """Describe the failure of unpacking; empty for an error that has another cause."""
    if isinstance(error, BROKEN) or (isinstance(error, OSError) and error.errno is None):
        return str(error) or type(error).__name__
    return ""
