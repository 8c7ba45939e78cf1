"""Rows of parquet and arrow files, read in bounded memory.

A few bytes of such a file may stand for gigabytes: a value referenced a million times, or packed
pages. Text therefore stays dictionary-encoded until a row is taken, rows are taken in slices of
bounded size, and the size of each unpacking step is first read from the file's metadata.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...base.errors import data_error
from .arrow_buffers import batches as packed_batches

FIELD = "dataset_name"
MAGIC = b"ARROW1"
MAX_ROW = 64 << 20  # bytes of one row; a line of text has the same limit
SLICE = 1 << 24  # bytes of the rows that are converted together
BATCH_ROWS = 256  # rows that are converted together
POINTER = 8  # bytes that any value needs at least
# A column chunk is refused above this many unpacked bytes, if it also unpacks to more than
# MAX_RATIO times its packed bytes.
MAX_UNPACKED, MAX_RATIO = 1 << 27, 200
MAX_VALUES = 1 << 27  # values of a column chunk


def read_columns(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a .parquet file, an .arrow file, or the bare arrow stream that `datasets` writes.

    Yields (row number from 1, values). Raises JobError (exit 3).
    """
    import pyarrow as pa  # imported here, so that text files do not need it

    number = 0
    try:
        with pa.OSFile(os.fsencode(path)) as file:  # a name may not be valid text
            parquet = path.suffix.lower() == ".parquet"
            for batch in _parquet(path, file) if parquet else _arrow(path, file):
                for part in _slices(batch):
                    if part.num_rows == 1:
                        _check_row(path, number + 1, part)
                    for values in part.to_pylist():
                        number += 1
                        yield number, values
    except (pa.ArrowException, UnicodeDecodeError, MemoryError, struct.error) as error:
        got = f"{path.name} after row {number}: {error}"
        raise data_error(FIELD, f"a {path.suffix.lower()} file", got) from error


_FEWER = "Write it again with fewer rows in each."


def _arrow(path: Path, file: Any) -> Iterator[Any]:
    import pyarrow as pa

    footed = file.read(len(MAGIC)) == MAGIC
    file.seek(8 if footed else 0)  # a stream follows the magic word and its padding
    for number, (packed, unpacked) in enumerate(packed_batches(file), start=1):
        if _unpacks_far(packed, unpacked):
            got = f"{path.name}, whose batch {number} packs {unpacked} bytes into {packed}"
            raise data_error(FIELD, "an .arrow file of smaller batches", got, _FEWER)
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
    """Choose the number of rows of a row group to unpack together. Raises JobError (exit 3)."""
    size = 0
    for column in map(group.column, range(group.num_columns)):
        packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
        if _unpacks_far(packed, unpacked) or column.num_values > MAX_VALUES:
            values = f"{unpacked} bytes, {column.num_values} values, into {packed}"
            got = f"{path.name}, whose column {column.path_in_schema!r} packs {values}"
            raise data_error(FIELD, "a .parquet file of smaller row groups", got, _FEWER)
        size += max(unpacked, POINTER * column.num_values)
    return max(1, min(BATCH_ROWS, SLICE * group.num_rows // max(1, size)))


def _unpacks_far(packed: int, unpacked: int) -> bool:
    return unpacked > MAX_UNPACKED and unpacked > MAX_RATIO * packed


def _slices(batch: Any) -> Iterator[Any]:
    """Slice a batch into parts of at most SLICE bytes, or of one row."""
    if batch.num_rows <= 1 or (
        batch.num_rows <= BATCH_ROWS and sum(map(_size, batch.columns)) <= SLICE
    ):
        yield batch
    else:
        half = min(BATCH_ROWS, batch.num_rows // 2)
        for start in range(0, batch.num_rows, half):
            yield from _slices(batch.slice(start, half))


def _check_row(path: Path, number: int, row: Any) -> None:
    sizes = dict(zip(row.schema.names, map(_size, row.columns), strict=True))
    if sum(sizes.values()) > MAX_ROW:
        largest = max(sizes, key=sizes.__getitem__)
        got = f"{path.name} row {number}, column {largest!r}: {sizes[largest]} bytes"
        raise data_error(FIELD, f"rows of at most {MAX_ROW} bytes", got)


def _size(array: Any) -> int:
    """Estimate the bytes of an array's values; a repeated value counts each time."""
    import pyarrow as pa

    # pyarrow.compute creates its functions on import, so type checkers do not see them.
    pc: Any = importlib.import_module("pyarrow.compute")
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

    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def _entries(array: Any) -> Any:
    """Return the keys and values of a map array as structs."""
    import pyarrow as pa

    if not len(array):
        return array.keys.slice(0, 0)
    first, last = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
    both = [array.keys.slice(first, last - first), array.items.slice(first, last - first)]
    return pa.StructArray.from_arrays(both, ["key", "value"])
