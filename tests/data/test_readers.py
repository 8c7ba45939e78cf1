"""Readers of every file format, and the error of each broken file."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_rows import fault, rows, write

from plugin.base.errors import JobError
from plugin.data.files import readers
from plugin.data.files.readers import read_file, read_jsonl
from plugin.data.sources import Row, read_rows


def test_jsonl_keeps_line_numbers_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "two words é.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\u00e9"}\r\n\r\n{"a": null}')
    assert rows(path) == [("two words é.jsonl:1", {"a": "é"}), ("two words é.jsonl:3", {"a": None})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1,}', "expected a JSON object, got train.jsonl line 7: column 9: "),
        (
            b'{"a": 1',
            "expected a JSON object, got train.jsonl line 7: column 8: ",
        ),  # it breaks where the line ends
        (b'{"a":  \r', "expected a JSON object, got train.jsonl line 7: column 6: "),
        (b'{"a": "x', "expected a JSON object, got train.jsonl line 7: column 7: "),
        (b"[1]", "train.jsonl line 7: list '[1]'"),
        (b'{"a": "\xff"}', "expected utf-8 text, got train.jsonl line 7: byte 0xff at byte 8"),
        (b"[" * 100_000, "train.jsonl line 7: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "train.jsonl line 7: Exceeds the limit"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 6 + line + b"\n")
    stream = read_rows(str(path), "train")
    assert next(stream) == Row("train.jsonl:1", {"a": 1})  # rows flow before the fault is met
    assert message in fault(path)


def test_line_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 20)
    path = write(tmp_path / "a.jsonl", {"a": 1}, {"a": "x" * 30})
    assert "lines of at most 20 bytes, got a.jsonl line 2" in fault(path)
    (tmp_path / "a.txt").write_text("0123456789\n" * 3)
    assert "paragraphs of at most 20 characters, got a.txt line 2" in fault(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1},\n {"a": 2}]',
        '{"version": 1, "data": [{"a": 1}, {"a": 2}]}',
        '{"a": 1}\n{"a": 2}\n',
    ],
)
def test_json_is_read_in_three_forms(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    assert rows(path) == [("d.json:1", {"a": 1}), ("d.json:2", {"a": 2})]


def test_json_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    for text in ("[1, 2]", '{"a": 1}', '{"train": [{"a": 1}], "test": [{"a": 1}]}', '"text"'):
        path.write_text(text)
        assert "a list of objects, or an object of which one value is such a list" in fault(path)
    path.write_text('[{"a": 1},\n {"a" 2}]')
    assert "d.json line 2: column 7: Expecting ':' delimiter" in fault(path)
    path.write_text('[{"a": 1},\n {"a": 2\n')
    assert "d.json line 2: column 9: " in fault(path)
    monkeypatch.setattr(readers, "MAX_JSON", 5)
    assert "Convert it to .jsonl." in fault(path)


def test_csv_keeps_quotes_line_breaks_and_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes('\ufeffq,a\r\n"two\nlines, ""quoted""",é\r\n\r\n2,\r\n'.encode())
    assert rows(path) == [
        ("d.csv:2", {"q": 'two\nlines, "quoted"', "a": "é"}),
        ("d.csv:5", {"q": "2", "a": ""}),
    ]
    path.write_text("q\n" + "x" * 200_000 + "\n")  # more than Python's default cell
    assert len(rows(path)[0][1]["q"]) == 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('q,a\n"1\n1",2\n1,2,3\n', "expected 2 cells as in the header, got d.csv line 4: 3 cells"),
        ("q,a\n1\n", "d.csv line 2: 1 cells"),
        ("q,q\n1,2\n", "column names that differ, got d.csv line 1: q, q"),
        ('q,a\n1,2\n"open,3\n4,5\n', "a row of comma-separated cells, got d.csv line 3: "),
    ],
)
def test_broken_csv_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    assert message in fault(path)


def test_paragraph_of_a_txt_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\n one\r\ntwo \n\n \t\n\nthree")
    assert rows(path) == [("t.txt:2", {"text": " one\ntwo "}), ("t.txt:7", {"text": "three"})]


@pytest.mark.parametrize(
    ("text_rows", "wanted"),
    [
        ("line", [("t.txt:1", " one"), ("t.txt:2", "two "), ("t.txt:5", "three")]),
        ("paragraph", [("t.txt:1", " one\ntwo "), ("t.txt:5", "three")]),
        ("file", [("t.txt:1", " one\ntwo \n\n\nthree\n")]),
    ],
)
def test_text_rows_chooses_the_row_of_a_txt(
    text_rows: str, wanted: list[tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbf one\r\ntwo \r\n\r\n\nthree\n")
    assert [
        (row.id, row.values["text"]) for row in read_rows(str(path), "train", text_rows=text_rows)
    ] == wanted
    path.write_bytes(b"\n \n")
    assert not list(read_rows(str(path), "train", text_rows=text_rows))


def test_txt_read_as_one_row_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 20)
    (tmp_path / "a.txt").write_text("0123456789\n" * 3)
    with pytest.raises(JobError, match=r"a .txt file of at most 20 bytes, got a.txt"):
        list(read_rows(str(tmp_path / "a.txt"), "train", text_rows="file"))


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.arrow"])
def test_nan_is_an_empty_cell_in_every_format(name: str, tmp_path: Path) -> None:
    values = [
        {"a": "x", "b": 1.5, "c": [{"d": 0.5}]},
        {"a": "y", "b": math.nan, "c": [{"d": math.nan}]},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(values), path)
    elif name.endswith("arrow"):
        with pa.ipc.new_stream(str(path), pa.Table.from_pylist(values).schema) as writer:
            writer.write_table(pa.Table.from_pylist(values))
    else:
        path.write_text("\n".join(map(json.dumps, values)))
    assert [row for _, row in rows(path)] == [values[0], {"a": "y", "b": None, "c": [{"d": None}]}]


def test_parquet_and_arrow_round_trip(tmp_path: Path) -> None:
    values = [
        {"n": n, "messages": [{"role": "user", "content": f"é{n}"}], "none": None}
        for n in range(600)
    ]
    table = pa.Table.from_pylist(values)
    pq.write_table(table, tmp_path / "d.parquet")
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("d.parquet", "stream.arrow", "file.arrow"):
        assert rows(tmp_path / name) == [
            (f"{name}:{n + 1}", value) for n, value in enumerate(values)
        ]
        (tmp_path / name).write_bytes(b"not columns at all, but long enough to look at")
        assert f"got {name} after row 0: " in fault(tmp_path / name)


def test_nan_in_a_csv_is_an_empty_cell(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("q,a\nNaN,nan\nnaan,NAN\n")
    assert [row for _, row in rows(tmp_path / "d.csv")] == [
        {"q": None, "a": None},
        {"q": "naan", "a": "NAN"},
    ]


@pytest.mark.parametrize("suffix", readers.READERS)
def test_git_lfs_pointer_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "which git-lfs has not fetched. Run `git lfs pull`" in fault(path)


@pytest.mark.parametrize("suffix", readers.READERS)
def test_empty_file_has_no_rows(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"d{suffix}").write_bytes(b"")
    assert rows(tmp_path / f"d{suffix}") == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("stem", "shown"), [("a\nb", "a\\nb"), ("a\udcff", "a\\udcff")])
def test_file_of_any_name_is_read_with_printable_row_ids(
    tmp_path: Path, suffix: str, stem: str, shown: str
) -> None:
    path = tmp_path / f"{stem}{suffix}"
    if suffix == ".jsonl":
        path.write_text('{"n": 1}\n')
    else:
        with path.open("wb") as file:
            pq.write_table(pa.table({"n": [1]}), file)
    assert [row.id for row in read_rows(str(tmp_path), "train")] == [f"{shown}{suffix}:1"]


def packed(path: Path, text: bytes) -> Path:
    """Write a file compressed as its suffix says, in two members as concatenated archives have."""
    half = len(text) // 2
    parts = text[:half], text[half:]
    if path.suffix == ".gz":
        path.write_bytes(b"".join(map(gzip.compress, parts)))
    else:
        codec = pa.Codec("zstd")
        path.write_bytes(b"".join(codec.compress(part, asbytes=True) for part in parts))
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_rows_equal_plain_ones(suffix: str, tmp_path: Path) -> None:
    lines = b"".join(b'{"n": %d, "s": "%s"}\n' % (n, b"x" * (n % 97)) for n in range(3000))
    (tmp_path / "a.jsonl").write_bytes(lines)
    file = packed(tmp_path / f"b.jsonl{suffix}", lines)
    assert list(read_file(file, "line")) == list(read_file(tmp_path / "a.jsonl", "line"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_file_cut_short_is_a_bad_row(suffix: str, tmp_path: Path) -> None:
    lines = b"".join(b'{"n": %d, "s": "%d"}\n' % (n, n * n) for n in range(30_000))
    file = packed(tmp_path / f"a.jsonl{suffix}", lines)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(JobError, match="a complete compressed file"):
        list(read_file(file, "line"))
    bad: dict[int, JobError] = {}
    rows = list(read_file(file, "line", bad.__setitem__))
    assert 0 < len(rows) < 30_000
    assert "a complete compressed file" in str(bad[max(bad)])


def test_bad_rows_are_handed_over_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n\xff\n[1]\n{"n"\n{"n": 5}\n')
    (tmp_path / "a.csv").write_bytes(b'n\n1\n2,3\n"x"y\n5\n')
    (tmp_path / "a.txt").write_bytes(b"one\n\n\xff\n\nfive\n")
    for name, wanted, lost in (
        ("a.jsonl", [1, 5], [2, 3, 4]),
        ("a.csv", ["1", "5"], [3, 4]),
        ("a.txt", ["one", "five"], [3]),
    ):
        bad: dict[int, JobError] = {}
        rows = list(read_file(tmp_path / name, "line", bad.__setitem__))
        assert [next(iter(values.values())) for _, values in rows] == wanted
        assert list(bad) == lost
        with pytest.raises(JobError):
            list(read_file(tmp_path / name, "line"))


def test_line_beyond_the_limit_is_skipped_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 20)
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": "' + "x" * 70 + '"}\n{"n": 3}\n')
    bad: dict[int, JobError] = {}
    rows = list(read_file(tmp_path / "a.jsonl", "line", bad.__setitem__))
    assert ([values["n"] for _, values in rows], [*bad]) == ([1, 3], [2])


def test_spans_of_a_file_hold_every_line_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n": {n}, "s": "{"x" * (7 * n % 31)}"}}\n' for n in range(40)))
    size = path.stat().st_size
    for step in (1, 7, 20, 33, 100, size, 2 * size):
        spans = [(start, min(start + step, size)) for start in range(0, size, step)]
        found = [values["n"] for span in spans for _, values in read_jsonl(path, span=span)]
        assert found == list(range(40))
