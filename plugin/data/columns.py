"""Parquet and arrow: rows out of columns, whatever a small file unpacks to.

A few bytes of such a file may stand for gigabytes: a value named a million times, or pages that
are packed. So text stays as the words and numbers that it is stored as until a row is taken, rows
are taken by bytes, and what has to be unpacked at once is foretold from the file's own account.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import data_error
from .arrow_packed import batches as packed_batches

FIELD = "dataset_name"
MAGIC = b"ARROW1"
MAX_ROW = 64 << 20  # bytes of one row, as of one line of text
SLICE = 1 << 24  # bytes of the rows that are made at a time
BATCH_ROWS = 256  # and rows at most
POINTER = 8  # bytes that any value takes at least
UNPACKED, PACKED = (
    1 << 27,
    200,
)  # a column of a row group: bytes unpacked, and how many times its packed ones
VALUES = 1 << 27  # of one column of a row group


def read_columns(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a .parquet, or an .arrow with a footer or as the bare stream that `datasets` writes.

    Yield (row number from 1, values). Raise JobError (exit 3).
    """
    import pyarrow as pa  # here, so that text files need no pyarrow

    number = 0
    try:
        with pa.OSFile(os.fsencode(path)) as file:  # a name need not be text
            parquet = path.suffix.lower() == ".parquet"
            for batch in _parquet(path, file) if parquet else _arrow(path, file):
                for piece in _pieces(batch):
                    if piece.num_rows == 1:
                        _check_row(path, number + 1, piece)
                    for values in piece.to_pylist():
                        number += 1
                        yield number, values
    except (pa.ArrowException, UnicodeDecodeError, MemoryError, struct.error) as error:
        got = f"{path.name} after row {number}: {error}"
        raise data_error(FIELD, f"a {path.suffix.lower()} file", got) from error


def _arrow(path: Path, file: Any) -> Iterator[Any]:
    import pyarrow as pa

    footed = file.read(len(MAGIC)) == MAGIC
    file.seek(8 if footed else 0)  # behind the magic word and its padding a stream begins
    for number, (packed, unpacked) in enumerate(packed_batches(file), start=1):
        if _unpacks_far(packed, unpacked):
            got = f"{path.name}, whose batch {number} packs {unpacked} bytes into {packed}"
            raise data_error(
                FIELD,
                "an .arrow file of smaller batches",
                got,
                "Write it again with fewer rows in each.",
            )
    file.seek(0)
    if footed:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pa.ipc.open_stream(file)


def _parquet(path: Path, file: Any) -> Iterator[Any]:
    import pyarrow.parquet as pq

    about = pq.read_metadata(file)
    text = [
        column.path
        for column in map(about.schema.column, range(about.num_columns))
        if column.physical_type == "BYTE_ARRAY"
    ]
    file.seek(0)
    opened = pq.ParquetFile(file, read_dictionary=text)
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        if group.num_rows:
            rows = _rows_at_once(path, group)
            yield from opened.iter_batches(batch_size=rows, row_groups=[number])


def _rows_at_once(path: Path, group: Any) -> int:
    """Choose how many rows of a row group to unpack at a time. Raise JobError (exit 3)."""
    size = 0
    for column in map(group.column, range(group.num_columns)):
        packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
        if _unpacks_far(packed, unpacked) or column.num_values > VALUES:
            got = f"{path.name}, whose column {column.path_in_schema!r} packs {unpacked} bytes, {column.num_values} values, into {packed}"
            raise data_error(
                FIELD,
                "a .parquet file of smaller row groups",
                got,
                "Write it again with fewer rows in each.",
            )
        size += max(unpacked, POINTER * column.num_values)
    return max(1, min(BATCH_ROWS, SLICE * group.num_rows // max(1, size)))


def _unpacks_far(packed: int, unpacked: int) -> bool:
    return unpacked > UNPACKED and unpacked > PACKED * packed


def _pieces(batch: Any) -> Iterator[Any]:
    """Cut a batch into pieces of at most SLICE bytes, or of one row."""
    if batch.num_rows <= 1 or (
        batch.num_rows <= BATCH_ROWS and sum(map(_size, batch.columns)) <= SLICE
    ):
        yield batch
    else:
        half = min(BATCH_ROWS, batch.num_rows // 2)
        for start in range(0, batch.num_rows, half):
            yield from _pieces(batch.slice(start, half))


def _check_row(path: Path, number: int, row: Any) -> None:
    sizes = dict(zip(row.schema.names, map(_size, row.columns), strict=True))
    if sum(sizes.values()) > MAX_ROW:
        largest = max(sizes, key=sizes.__getitem__)
        got = f"{path.name} row {number}, column {largest!r}: {sizes[largest]} bytes"
        raise data_error(FIELD, f"rows of at most {MAX_ROW} bytes", got)


def _size(array: Any) -> int:
    """Foretell the bytes that an array's values take, every repeated one counted."""
    import pyarrow as pa

    pc: Any = importlib.import_module(
        "pyarrow.compute"
    )  # whose functions are made when it is imported
    kind = array.type
    least = POINTER * len(array)
    if pa.types.is_dictionary(kind):
        words = array.dictionary
        lengths = pc.fill_null(pc.binary_length(words), 0) if _is_text(words.type) else None
        if lengths is None:
            return least + len(array) * (_size(words) // max(1, len(words)))
        return least + (pc.sum(lengths.take(array.indices)).as_py() or 0)
    if _is_text(kind):
        return least + (pc.sum(pc.binary_length(array)).as_py() or 0)
    if pa.types.is_struct(kind):
        return least + sum(map(_size, array.flatten()))
    if (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_map(kind)
    ):
        inner = array.flatten() if not pa.types.is_map(kind) else _entries(array)
        return least + _size(inner)
    if isinstance(array, pa.ExtensionArray):
        return _size(array.storage)
    return max(least, array.nbytes)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        is_one(kind)
        for is_one in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _entries(array: Any) -> Any:
    import pyarrow as pa

    if not len(array):
        return array.keys.slice(0, 0)
    first, last = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
    both = [array.keys.slice(first, last - first), array.items.slice(first, last - first)]
    return pa.StructArray.from_arrays(both, ["key", "value"])
