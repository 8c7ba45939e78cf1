"""File formats: one reader a suffix, each streaming (line or row number from 1, values).

Rows stream, so a file larger than memory is read in constant memory (except .json, which is read in
full). A row that cannot be read stops the job with the file and the line, unless the caller takes
bad rows: it then gets the error in the row's place. Text files may be compressed (.gz, .zst).
"""

from __future__ import annotations

import csv
import json
import math
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from ...base.errors import JobError, data_error
from .columns import FIELD, read_columns
from .compressed import data_suffix, is_compressed, open_bytes, unpacking_failure

MAX_LINE = 64 << 20  # bytes of one line, one csv cell or one paragraph
MAX_JSON = 1 << 30  # bytes of a .json file, which is read in full

_NAN = ("nan", "NaN")  # programs write an empty cell of a .csv like this
_POINTER = b"version https://git-lfs"  # first bytes of a file that git-lfs has not fetched

Numbered = Iterator[tuple[int, dict[str, Any]]]
# Takes the number and the error of a row that cannot be read.
Bad = Callable[[int, JobError], None]
Span = tuple[int, int]  # bytes of a file: the lines that begin in it


def stop(number: int, error: JobError) -> None:
    """Raise the error of a bad row: a Bad that ends the reading."""
    raise error


def _bad(path: Path, line: int, expected: str, got: str) -> JobError:
    return data_error(FIELD, expected, f"{path.name} line {line}: {got}")


def _lines(path: Path, bad: Bad, span: Span | None = None) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their line ends; a byte-order mark is dropped.

    Lines of a `span` are numbered from 1 in it.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            place, end = _seek(file, span) if span else (0, math.inf)
            while place < end and (line := file.readline(MAX_LINE + 1)):
                number += 1
                place += len(line)
                if len(line) > MAX_LINE:
                    expected = f"lines of at most {MAX_LINE} bytes"
                    bad(number, _bad(path, number, expected, "a longer one"))
                    place += _skip_line(file)
                    continue
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1}"
                    bad(number, _bad(path, number, "utf-8 text", got))
    except (EOFError, OSError, zlib.error) as error:
        if not (is_compressed(path) and (why := unpacking_failure(error))):
            raise
        bad(number + 1, _bad(path, number + 1, "a complete compressed file", why))


def _seek(file: IO[bytes], span: Span) -> tuple[int, int]:
    """Move to the first line that begins in `span`. Return (its place, the end of the span)."""
    start, end = span
    if start:
        file.seek(start - 1)
        start += -1 + _skip_line(file)
    return start, end


def _skip_line(file: IO[bytes]) -> int:
    """Read to the next line. Return the bytes read."""
    skipped = 0
    while part := file.readline(MAX_LINE):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _parse_json(path: Path, line: int, text: str) -> Any:
    try:
        # Without rstrip, an error at the end of the line would be reported in the next line.
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        got = f"column {error.colno}: {error.msg}"
        raise _bad(path, line + error.lineno - 1, "a JSON object", got) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise _bad(path, line, "a JSON object", str(error)) from error


def read_jsonl(path: Path, bad: Bad = stop, span: Span | None = None) -> Numbered:
    """Read the lines of a .jsonl that begin in `span`, numbered from 1 there; all without one."""
    for number, line in _lines(path, bad, span):
        if not line.isspace():
            try:
                values = _parse_json(path, number, line)
                if not isinstance(values, dict):
                    got = f"{type(values).__name__} {line.strip()[:40]!r}"
                    raise _bad(path, number, "a JSON object", got)
            except JobError as error:
                bad(number, error)
            else:
                yield number, values


def _read_json(path: Path, bad: Bad) -> Numbered:
    if _is_json_lines(path):
        yield from read_jsonl(path, bad)
        return
    value = _parse_json(path, 1, _full_text(path, MAX_JSON, ".json", "Convert it to .jsonl."))
    if isinstance(value, dict):
        lists = [item for item in value.values() if _is_objects(item)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or (value and not _is_objects(value)):
        expected = "a list of objects, or an object of which one value is such a list"
        raise data_error(FIELD, expected, f"{path.name}, which holds something else")
    yield from enumerate(value, start=1)


def _full_text(path: Path, most: int, kind: str, fix: str) -> str:
    """Return a file's text. Raises JobError (exit 3) above `most` bytes."""
    parts: list[str] = []
    size = 0
    for _, line in _lines(path, stop):
        size += len(line)
        if size > most:
            raise data_error(FIELD, f"a {kind} file of at most {most} bytes", path.name, fix)
        parts.append(line)
    return "".join(parts)


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_json_lines(path: Path) -> bool:
    """Tell a file whose first line is a complete object and that has another line."""
    first, second = [*islice((line for _, line in _lines(path, stop) if line.strip()), 2), "", ""][
        :2
    ]
    try:
        return bool(second) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _read_csv(path: Path, bad: Bad) -> Numbered:
    # A setting of the process; its default of 128 KiB refuses long documents.
    csv.field_size_limit(MAX_LINE)
    # strict: otherwise an unclosed quote swallows the rest of the file.
    reader = csv.reader((line for _, line in _lines(path, bad)), strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad(number, _bad(path, number, "a row of comma-separated cells", str(error)))
            continue
        if not cells:
            continue
        if not header:
            header = cells
            if len(set(header)) < len(header):
                raise _bad(path, number, "column names that differ", ", ".join(header))
        elif len(cells) != len(header):
            expected = f"{len(header)} cells as in the header"
            bad(number, _bad(path, number, expected, f"{len(cells)} cells"))
        else:
            values = (None if cell in _NAN else cell for cell in cells)
            yield number, dict(zip(header, values, strict=True))


def _read_text_lines(path: Path, bad: Bad) -> Numbered:
    """Read every line that is not blank as a row."""
    for number, line in _lines(path, bad):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _read_text_file(path: Path, bad: Bad) -> Numbered:
    """Read the file as a single row."""
    try:
        text = _full_text(path, MAX_LINE, ".txt", "Set text_rows paragraph.")
    except JobError as error:
        bad(1, error)
        return
    if text.strip():
        yield 1, {"text": text.replace("\r\n", "\n")}


def _read_text(path: Path, bad: Bad) -> Numbered:
    """Read every paragraph as a row, numbered by its first line; its line breaks stay."""
    paragraph: list[str] = []
    first = size = 0
    # A blank line after the end closes the last paragraph.
    for number, line in chain(_lines(path, bad), [(0, "")]):
        if line.strip():
            first = first or number
            size += len(line)
            if size <= MAX_LINE:
                paragraph.append(line.rstrip("\r\n"))
            elif paragraph:  # the rest of this paragraph is left out with it
                expected = f"paragraphs of at most {MAX_LINE} characters"
                bad(first, _bad(path, number, expected, "a longer one"))
                paragraph = []
        else:
            if paragraph:
                yield first, {"text": "\n".join(paragraph)}
            paragraph, first, size = [], 0, 0


def _columns(path: Path, bad: Bad) -> Numbered:
    """Read a file of columns, of which no single row can be bad."""
    return read_columns(path)


TEXT_ROWS: dict[str, Callable[[Path, Bad], Numbered]] = {
    "line": _read_text_lines,
    "paragraph": _read_text,
    "file": _read_text_file,
}
READERS: dict[str, Callable[[Path, Bad], Numbered]] = {
    ".jsonl": read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _columns,
    ".arrow": _columns,
    ".txt": _read_text,
}


def read_file(path: Path, text_rows: str, bad: Bad = stop) -> Numbered:
    """Read a file by its suffix; a NaN becomes None.

    `text_rows` chooses the row of a .txt: line, paragraph or file. Raises JobError (exit 3).
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            fix = f"Run `git lfs pull` in {path.parent}."
            raise data_error(
                FIELD, "a complete file", f"{path}, which git-lfs has not fetched", fix
            )
    suffix = data_suffix(path)
    reader = TEXT_ROWS[text_rows] if suffix == ".txt" else READERS[suffix]
    return ((number, without_nan(values)) for number, values in reader(path, bad))


def without_nan(value: Any) -> Any:
    """Replace every NaN, pandas' spelling of an empty cell, by None."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return value
