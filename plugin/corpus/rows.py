"""Rows of a reading task: their texts, or the reason why a row has none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import JobError, data_error
from ..config.prepare_params import PrepareParams
from ..data.files.readers import Bad, read_file, read_jsonl, stop, without_nan
from ..data.hub import hub_rows
from ..data.sources import unreadable
from .listing import FIELD, Listing, ReadTask, Source, SourceFile

EMPTY = "empty"


class RawRow(NamedTuple):
    """A row: its file (number in the source), its number there, and its text or why it has none.

    In a task that reads bytes of a file, rows are numbered from the first line of these bytes.
    """

    file: int
    number: int
    text: str
    reason: str = ""


def read_task(listing: Listing, task: ReadTask, params: PrepareParams) -> Iterator[RawRow]:
    """Read the rows of a task.

    Raises JobError (exit 3) for a file that changed since it was listed and, unless bad rows are
    skipped, for the first bad row.
    """
    return islice(_rows(listing.sources[task.source], task, params), task.limit)


def numbered_documents(
    listing: Listing, task: ReadTask, params: PrepareParams, first: int
) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of a task's documents, counted from `first`; other rows are left out."""
    texts = (row.text for row in read_task(listing, task, params) if not row.reason)
    return enumerate(texts, start=first)


def lines_of(listing: Listing, task: ReadTask) -> int:
    """Count the lines that begin in the bytes of a task."""
    (place,), span = task.files, task.span
    assert span is not None
    start, end = span
    count = int(start == 0)
    with open(listing.sources[task.source].files[place].path, "rb") as file:
        file.seek(max(0, start - 1))
        left = end - 1 - max(0, start - 1)  # a line begins behind a line's end
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            count += part.count(b"\n")
            left -= len(part)
    return count


def _rows(source: Source, task: ReadTask, params: PrepareParams) -> Iterator[RawRow]:
    part = source.part
    if part.path is None:
        for number, values in enumerate(hub_rows(part.name, part.config, task.split), start=1):
            yield _row(0, number, without_nan(values), params, part.name)
    for place in task.files:
        file = source.files[place]
        check_unchanged(file)
        bad: list[RawRow] = []
        try:
            for number, values in _values(file, task, params, _taker(place, bad, params)):
                yield from bad
                bad.clear()
                yield _row(place, number, values, params, file.label)
        except OSError as error:
            raise unreadable(Path(file.path), error) from error
        yield from bad
        check_unchanged(file)


def _values(
    file: SourceFile, task: ReadTask, params: PrepareParams, bad: Bad
) -> Iterator[tuple[int, dict[str, Any]]]:
    if not file.bytes:
        return iter(())
    path = Path(file.path)
    if task.span:
        return read_jsonl(path, bad, task.span)
    return read_file(path, params.text_rows, bad)


def _taker(place: int, bad: list[RawRow], params: PrepareParams) -> Bad:
    """Return what takes the bad rows of a file."""
    if params.bad_rows == "stop":
        return stop

    def take(number: int, error: JobError) -> None:
        bad.append(RawRow(place, number, "", f"not {error.problems[0].expected}"))

    return take


def _row(
    place: int, number: int, values: dict[str, Any], params: PrepareParams, label: str
) -> RawRow:
    column = params.text_field
    text = values.get(column)
    if isinstance(text, str) and _encodable(text):
        return RawRow(place, number, text, EMPTY if not text or text.isspace() else "")
    if column not in values:
        reason, got = f"no column {column!r}", f"the columns {', '.join(map(str, values))}"
    elif text is None:
        return RawRow(place, number, "", EMPTY)
    else:
        kind = "half a surrogate pair" if isinstance(text, str) else type(text).__name__
        reason, got = f"{kind} in column {column!r}", kind
    if params.bad_rows == "stop":
        fix = "Name the column in text_field, or set bad_rows skip."
        raise data_error(
            "text_field", f"a text in column {column!r}", f"{label}:{number}: {got}", fix
        )
    return RawRow(place, number, "", reason)


def _encodable(text: str) -> bool:
    """Tell whether UTF-8 can hold a text: JSON may spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unchanged(file: SourceFile) -> None:
    """Raise JobError (exit 3) for a file that changed since it was listed."""
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise unreadable(Path(file.path), error) from error
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.mtime_ns):
        expected, fix = "files that stay as they were listed", "Run prepare again."
        raise data_error(FIELD, expected, f"{file.path}, which changed meanwhile", fix)
