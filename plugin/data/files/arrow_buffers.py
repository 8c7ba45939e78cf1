"""Unpacked size of an arrow file's buffers, read from its messages without unpacking any.

pyarrow unpacks a full batch before it returns any of it. A batch's message names its buffers, and a
packed buffer begins with its unpacked length (Arrow columnar format, "Buffer compression").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_ALIGNED = 8  # bytes to which messages are padded
_DICTIONARY, _BATCH = 2, 3  # kinds of messages
_MAX_MESSAGE = 1 << 26  # bytes of a message's metadata


def batches(file: Any) -> Iterator[tuple[int, int]]:
    """Yield (bytes packed, bytes unpacked) of each batch from the file's position to its end."""
    while len(head := file.read(4)) == 4:
        (size,) = struct.unpack("<i", head)
        if size == -1:  # newer writers put this mark before the length
            (size,) = struct.unpack("<i", file.read(4))
        if not 0 < size <= _MAX_MESSAGE:
            return
        table = _Table(file.read(size), 0)
        kind, body, start = table.number(1, "B"), table.number(3, "q"), file.tell()
        if kind in (_DICTIONARY, _BATCH):
            batch = table.table(2)
            yield body, _unpacked(file, batch.table(1) if kind == _DICTIONARY else batch, start)
        file.seek(start + body)


def _unpacked(file: Any, batch: _Table, start: int) -> int:
    """Sum the unpacked bytes of a batch's buffers; `start` is where its body begins."""
    packed = batch.field(3)
    total = 0
    for offset, length in batch.pairs(2):
        if packed and length >= _ALIGNED:
            file.seek(start + offset)
            (unpacked,) = struct.unpack("<q", file.read(_ALIGNED))
            total += length if unpacked < 0 else unpacked  # -1: this buffer is stored unpacked
        else:
            total += length
    return total


class _Table:
    """A table of a flatbuffer; its fields are read by number."""

    def __init__(self, data: bytes, at: int):
        self._data = data
        self._at = at + self._read("<I", at) if at == 0 else at
        self._fields = self._at - self._read("<i", self._at)

    def field(self, number: int) -> int:
        """Return the offset of a field; 0 if it is absent."""
        place = 4 + 2 * number
        if place >= self._read("<H", self._fields):
            return 0
        offset = self._read("<H", self._fields + place)
        return self._at + offset if offset else 0

    def number(self, number: int, kind: str) -> int:
        """Read a number field of struct format `kind`; 0 if it is absent."""
        at = self.field(number)
        return self._read(f"<{kind}", at) if at else 0

    def table(self, number: int) -> _Table:
        """Follow a table field."""
        at = self.field(number)
        return _Table(self._data, at + self._read("<I", at))

    def pairs(self, number: int) -> Iterator[tuple[int, int]]:
        """Read a vector of number pairs."""
        if at := self.field(number):
            at += self._read("<I", at)
            for place in range(self._read("<I", at)):
                yield struct.unpack_from("<qq", self._data, at + 4 + 16 * place)

    def _read(self, kind: str, at: int) -> int:
        return struct.unpack_from(kind, self._data, at)[0]
