"""Data files that ask for too much memory or time: each is refused in one short line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.refusals import refused
from helpers.support import ROOT, child_env

from plugin.base.errors import JobError
from plugin.data.files.columns import MAX_ROW
from plugin.data.files.readers import read_file
from plugin.data.sources import read_rows

BIG = "a" * (16 << 20)
FORTY = {"prompt": ["q"] * 40, "response": [BIG] * 40}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": BIG}]


def arrow(path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 40), pa.array([BIG]))
    table = pa.table({"prompt": ["q"] * 40, "response": words})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as written:
        written.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.parquet", lambda path: pq.write_table(pa.table(FORTY), path, compression="zstd")),
        (
            "n.parquet",
            lambda path: pq.write_table(
                pa.table({"messages": [CHAT] * 40}), path, compression="zstd"
            ),
        ),
        (
            "r.parquet",
            lambda path: pq.write_table(
                pa.table(FORTY), path, use_dictionary=False, compression="zstd", row_group_size=1
            ),
        ),
        ("d.arrow", arrow),
    ],
)
def test_large_cells_are_read_one_after_another(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    """Audit 13: 1,195 bytes of 40 rows of 16 MiB took 674 MB to read."""
    write(tmp_path / name)
    code = (
        "import resource, sys, pyarrow.parquet\n"
        "from plugin.data.files.readers import read_file\n"
        "from pathlib import Path\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = sum(1 for _ in read_file(Path(sys.argv[1]), 'line'))\n"
        "print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        env=child_env({}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows, grown = map(int, done.stdout.split())
    assert rows == 40
    assert grown < 250, "MB"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"prompt": ["q", "q"], "response": ["a", "a" * (65 << 20)]},
            "row 2, column 'response': 68157448 bytes",
        ),
        ({"prompt": ["q"], "response": [[BIG] * 40]}, "row 1, column 'response'"),
        ({"prompt": ["q"], "response": [{"a": {"b": [[BIG] * 9]}}]}, "row 1, column 'response'"),
        ({"prompt": ["q"], "response": [[None] * 10_000_000]}, "row 1, column 'response'"),
    ],
)
def test_a_cell_beyond_a_lines_limit_is_named(
    table: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Audit 13: a cell has the limit of a line of text, whatever it is packed into."""
    pq.write_table(pa.table(table), tmp_path / "d.parquet", compression="zstd")
    problem = refused(lambda: list(read_file(tmp_path / "d.parquet", "line")))
    assert (problem.field, problem.code) == ("dataset_name", 3)
    assert says in problem.got
    assert str(MAX_ROW) in problem.expected


def test_pages_that_unpack_a_thousandfold_are_refused(tmp_path: Path) -> None:
    """Audit 13: one page of 640 MB, packed into 21 KB, would be unpacked in full."""
    file = tmp_path / "d.parquet"
    pq.write_table(pa.table(FORTY), file, compression="zstd", use_dictionary=False)
    assert (
        "d.parquet, whose column 'response' packs 67108"
        in refused(lambda: list(read_file(file, "line"))).got
    )


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_batches_that_unpack_a_thousandfold_are_refused(
    make: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    """Audit 13: 21 KB of an arrow file unpack to 640 MB, before any of it is seen."""
    table, file = pa.table(FORTY), tmp_path / "d.arrow"
    options = pa.ipc.IpcWriteOptions(compression=kind)
    with (
        pa.OSFile(str(file), "wb") as opened,
        make(opened, table.schema, options=options) as written,
    ):
        written.write_table(table)
    assert (
        "d.arrow, whose batch 1 packs 67108" in refused(lambda: list(read_file(file, "line"))).got
    )


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 9, 100, 500, 1500])
def test_a_broken_arrow_file_is_refused(length: int, tmp_path: Path) -> None:
    """The file's account of its batches may be truncated or nonsense."""
    table, file = pa.table({"prompt": ["q"] * 9, "response": ["a"] * 9}), tmp_path / "d.arrow"
    for make in (pa.ipc.new_stream, pa.ipc.new_file):
        with pa.OSFile(str(file), "wb") as opened, make(opened, table.schema) as written:
            written.write_table(table)
        whole = file.read_bytes()
        for content in (
            whole[:length],
            whole[:length] + b"\xff" * 64,
            whole[:length] + b"\x7f" * 64,
        ):
            file.write_bytes(content)
            try:
                rows = len(list(read_rows(str(file), "train")))
            except JobError as error:
                rows = -error.code
            assert rows in (-3, 0, 9), content


def test_ordinary_columns_read_as_before(tmp_path: Path) -> None:
    """Text is read as a dictionary of its words, and equals what was written."""
    import datetime
    import decimal

    rows = [
        {
            "text": None if n % 7 == 0 else f"é{n % 5}",
            "many": [f"a{n}", None] if n % 3 else None,
            "chat": [{"role": "user", "content": f"{n}"}] if n % 4 else [],
            "raw": bytes([n % 256]),
            "number": n,
            "when": datetime.date(2026, 1, 1 + n % 28),
            "money": decimal.Decimal(n),
            "pairs": [("k", f"v{n}")],
            "none": None,
        }
        for n in range(1000)
    ]
    schema = pa.Table.from_pylist(rows[500:502]).schema
    schema = schema.set(
        schema.get_field_index("pairs"), pa.field("pairs", pa.map_(pa.string(), pa.string()))
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=300)
    for written in ("d.arrow", "f.arrow", "z.arrow"):
        make = pa.ipc.new_file if written == "f.arrow" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression="zstd" if written == "z.arrow" else None)
        with (
            pa.OSFile(str(tmp_path / written), "wb") as file,
            make(file, table.schema, options=options) as out,
        ):
            out.write_table(table)
    for name in ("d.parquet", "d.arrow", "f.arrow", "z.arrow"):
        found = list(read_file(tmp_path / name, "line"))
        assert [number for number, _ in found] == list(range(1, 1001))
        assert [values for _, values in found] == table.to_pylist()
