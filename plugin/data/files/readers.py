"""File formats: one reader a suffix, each streaming (line or row number from 1, values).

Rows stream, so a file larger than memory is read in constant memory (except .json, which is read in
full). A file that cannot be read to its end stops the job with the file and the line.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...base.errors import JobError, data_error
from .columns import FIELD, read_columns

MAX_LINE = 64 << 20  # bytes of one line, one csv cell or one paragraph
MAX_JSON = 1 << 30  # bytes of a .json file, which is read in full

_NAN = ("nan", "NaN")  # programs write an empty cell of a .csv like this
_POINTER = b"version https://git-lfs"  # first bytes of a file that git-lfs has not fetched

Numbered = Iterator[tuple[int, dict[str, Any]]]


def _bad(path: Path, line: int, expected: str, got: str) -> JobError:
    return data_error(FIELD, expected, f"{path.name} line {line}: {got}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their line ends; a byte-order mark is dropped."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise _bad(path, number, f"lines of at most {MAX_LINE} bytes", "a longer one")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1}"
                raise _bad(path, number, "utf-8 text", got) from error


def _parse_json(path: Path, line: int, text: str) -> Any:
    try:
        # Without rstrip, an error at the end of the line would be reported in the next line.
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        got = f"column {error.colno}: {error.msg}"
        raise _bad(path, line + error.lineno - 1, "a JSON object", got) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise _bad(path, line, "a JSON object", str(error)) from error


def _read_jsonl(path: Path) -> Numbered:
    for number, line in _lines(path):
        if line.strip():
            values = _parse_json(path, number, line)
            if not isinstance(values, dict):
                got = f"{type(values).__name__} {line.strip()[:40]!r}"
                raise _bad(path, number, "a JSON object", got)
            yield number, values


def _read_json(path: Path) -> Numbered:
    if _is_json_lines(path):
        yield from _read_jsonl(path)
        return
    if path.stat().st_size > MAX_JSON:
        expected = f"a .json file of at most {MAX_JSON} bytes"
        raise data_error(FIELD, expected, path.name, "Convert it to .jsonl.")
    value = _parse_json(path, 1, "".join(line for _, line in _lines(path)))
    if isinstance(value, dict):
        lists = [item for item in value.values() if _is_objects(item)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or (value and not _is_objects(value)):
        expected = "a list of objects, or an object of which one value is such a list"
        raise data_error(FIELD, expected, f"{path.name}, which holds something else")
    yield from enumerate(value, start=1)


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_json_lines(path: Path) -> bool:
    """Tell a file whose first line is a complete object and that has another line."""
    first, second = [*islice((line for _, line in _lines(path) if line.strip()), 2), "", ""][:2]
    try:
        return bool(second) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _read_csv(path: Path) -> Numbered:
    # A setting of the process; its default of 128 KiB refuses long documents.
    csv.field_size_limit(MAX_LINE)
    # strict: otherwise an unclosed quote swallows the rest of the file.
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise _bad(path, number, "column names that differ", ", ".join(header))
            elif len(cells) != len(header):
                expected = f"{len(header)} cells as in the header"
                raise _bad(path, number, expected, f"{len(cells)} cells")
            else:
                values = (None if cell in _NAN else cell for cell in cells)
                yield number, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise _bad(path, start, "a row of comma-separated cells", str(error)) from error


def _read_text_lines(path: Path) -> Numbered:
    """Read every line that is not blank as a row."""
    for number, line in _lines(path):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _read_text_file(path: Path) -> Numbered:
    """Read the file as a single row."""
    if path.stat().st_size > MAX_LINE:
        expected = f"a .txt of at most {MAX_LINE} bytes with text_rows file"
        raise data_error(FIELD, expected, path.name, "Set text_rows paragraph.")
    text = "".join(line for _, line in _lines(path)).replace("\r\n", "\n")
    if text.strip():
        yield 1, {"text": text}


def _read_text(path: Path) -> Numbered:
    """Read every paragraph as a row, numbered by its first line; its line breaks stay."""
    paragraph: list[str] = []
    first = size = 0
    # A blank line after the end closes the last paragraph.
    for number, line in chain(_lines(path), [(0, "")]):
        if line.strip():
            first = first or number
            paragraph.append(line.rstrip("\r\n"))
            size += len(line)
            if size > MAX_LINE:
                expected = f"paragraphs of at most {MAX_LINE} characters"
                raise _bad(path, number, expected, "a longer one")
        elif paragraph:
            yield first, {"text": "\n".join(paragraph)}
            paragraph, first, size = [], 0, 0


TEXT_ROWS: dict[str, Callable[[Path], Numbered]] = {
    "line": _read_text_lines,
    "paragraph": _read_text,
    "file": _read_text_file,
}
READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": read_columns,
    ".arrow": read_columns,
    ".txt": _read_text,
}


def read_file(path: Path, text_rows: str) -> Numbered:
    """Read a file by its suffix; a NaN becomes None.

    `text_rows` chooses the row of a .txt: line, paragraph or file. Raises JobError (exit 3).
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            fix = f"Run `git lfs pull` in {path.parent}."
            raise data_error(
                FIELD, "a complete file", f"{path}, which git-lfs has not fetched", fix
            )
    suffix = path.suffix.lower()
    reader = TEXT_ROWS[text_rows] if suffix == ".txt" else READERS[suffix]
    return ((number, without_nan(values)) for number, values in reader(path))


def without_nan(value: Any) -> Any:
    """Replace every NaN, pandas' spelling of an empty cell, by None."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return value
