"""Sources: the mixture grammar, every file kind, the folder split, and what each broken file
says.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plugin.base.errors import JobError
from plugin.data import readers
from plugin.data.hub import load_hub
from plugin.data.sources import (
    Part,
    Row,
    absolute_mixture,
    fingerprint,
    has_eval_split,
    parse_mixture,
    read_rows,
    renamed_mixture,
    skipped_files,
)


def write(path: Path, *values: object) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


def rows(spec: object, split: str = "train") -> list[tuple[str, dict[str, object]]]:
    return [(row.id, row.values) for row in read_rows(str(spec), split)]


def fault(spec: object, split: str = "train") -> str:
    with pytest.raises(JobError) as caught:
        rows(spec, split)
    assert {problem.field for problem in caught.value.problems} == {"dataset_name"}
    assert caught.value.code == 3
    return str(caught.value)


# --- the mixture


def test_the_grammar() -> None:
    assert parse_mixture("org/a[train:5_000,test:100,name:en-us] | b+c") == (
        Part("org/a", None, "en-us", 5000, 100),
        Part("b", None),
        Part("c", None),
    )
    for word in ("eval", "valid", "validation", "test"):
        assert parse_mixture(f"a[{word}:7]") == (Part("a", None, None, None, 7),)
    assert parse_mixture("a[name:x+y|z]") == (Part("a", None, "x+y|z"),)


def test_paths_are_taken_literally(tmp_path: Path) -> None:
    odd = tmp_path / "a+b|c [été].jsonl"
    plain = write(tmp_path / "d.jsonl", {"n": 2})
    write(odd, {"n": 1})
    assert rows(odd) == [("a+b|c [été].jsonl:1", {"n": 1})]
    mixture = f"{odd}[train:1] | {plain}"
    assert [(part.path, part.train_limit) for part in parse_mixture(mixture)] == [
        (odd, 1),
        (Path(plain), None),
    ]


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        ("", ["expected a file, a folder or a hub id, got ''"]),
        ("a||b", ["expected a file, a folder or a hub id, got ''"]),
        ("a[train:x]", ["a whole number from 1 after 'train:' in a, got 'x'"]),
        ("a[train:0]", ["got '0'"]),
        ("a[train:5__0]", ["got '5__0'"]),
        ("a[train:99999999999999999999]", ["a whole number"]),
        ("a[lines:3]", ["train:N, test:N or name:CONFIG in the brackets of a, got 'lines:3'"]),
        ("a[]", ["in the brackets of a"]),
        ("a[test:1,eval:2]", ["one limit for the eval split of a, got another one, 'eval:2'"]),
        ("a[train:1", ["NAME or NAME[train:N,test:N,name:CONFIG], got 'a[train:1'"]),
        ("no.jsonl", ["the missing file no.jsonl"]),
        ("./no", ["the missing file ./no"]),
        ("~/no-such", ["the missing file ~/no-such"]),
        ("no such", ["or a hub id, got 'no such', which is neither"]),
        ("a[train:x,what] + no.csv|", ["got 'x'", "got 'what'", "no.csv", "got ''"]),
    ],
)
def test_every_mistake_of_a_spec_is_told_at_once(spec: str, messages: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        parse_mixture(spec)
    assert len(caught.value.problems) == len(messages)
    for problem, message in zip(caught.value.problems, messages, strict=True):
        assert problem.field == "dataset_name"
        assert message in str(problem)


def test_a_mixture_concatenates_with_limits(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", *({"n": n} for n in range(5)))
    second = write(tmp_path / "b.jsonl", *({"n": n} for n in range(10, 13)))
    spec = f"{first}[train:2]|{second}+{first}[train:1_0]"
    assert [values["n"] for _, values in rows(spec)] == [0, 1, 10, 11, 12, 0, 1, 2, 3, 4]
    assert rows(spec, "eval") == []


def test_files_of_one_name_keep_their_ids_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    first, second = write(tmp_path / "a.jsonl", {}), write(tmp_path / "x" / "a.jsonl", {})
    assert [row_id for row_id, _ in rows(f"{first}|{second}")] == [f"{first}:1", f"{second}:1"]


def test_what_cannot_be_a_source(tmp_path: Path) -> None:
    for name, message in [
        ("a.jsonl.gz", "an uncompressed"),
        ("a.py", "Dataset scripts are never run"),
        ("a.tsv", "expected a .jsonl, .json, .csv, .parquet, .arrow, .txt file or a folder"),
    ]:
        (tmp_path / name).write_text("{}")
        assert message in fault(tmp_path / name)
    with pytest.raises(JobError, match="no 'name:' for"):
        parse_mixture(f"{tmp_path / 'a.py'}[name:x]")


# --- folders


def test_a_folder_splits_by_file_name(tmp_path: Path) -> None:
    eval_names = [
        "gsm8k_test.jsonl",
        "train_eval.jsonl",
        "validation-00000-of-00001.jsonl",
        "x-VAL-00000-of-00001.jsonl",
    ]
    train_names = ["contest.jsonl", "evaluate.jsonl", "latest.jsonl", "train one.jsonl"]
    for name in eval_names + train_names:
        write(tmp_path / name, {"from": name})
    for name in (".hidden.jsonl", "README.md", "index.json", "script.py"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "more.jsonl", {"from": "deeper"})
    assert [values["from"] for _, values in rows(tmp_path)] == sorted(train_names)
    assert [values["from"] for _, values in rows(tmp_path, "eval")] == sorted(eval_names)
    assert has_eval_split(str(tmp_path))
    assert [Path(name).name for name in skipped_files(str(tmp_path))] == [
        ".hidden.jsonl",
        "README.md",
        "index.json",
        "script.py",
    ]
    assert len(rows(f"{tmp_path}[train:1,test:2]", "eval")) == 2


def test_a_folder_of_eval_files_alone_and_a_single_file_are_train(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", {"n": 1})
    for spec in (str(tmp_path), file):
        assert rows(spec) == [("test.jsonl:1", {"n": 1})]
        assert not has_eval_split(spec)


def test_a_folder_without_data_or_with_packed_data(tmp_path: Path) -> None:
    assert "a folder with .jsonl" in fault(tmp_path)
    write(tmp_path / "a.jsonl", {})
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    assert "uncompressed files in" in fault(tmp_path)
    assert "b.jsonl.gz" in fault(tmp_path)


# --- file kinds


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
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 6 + line + b"\n")
    stream = read_rows(str(path), "train")
    assert next(stream) == Row("train.jsonl:1", {"a": 1})  # rows flow before the fault is met
    assert message in fault(path)


def test_a_line_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_json_in_its_three_forms(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    assert rows(path) == [("d.json:1", {"a": 1}), ("d.json:2", {"a": 2})]


def test_json_of_another_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_csv(tmp_path: Path) -> None:
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
def test_broken_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    assert message in fault(path)


def test_txt_is_a_row_a_paragraph(tmp_path: Path) -> None:
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
def test_a_row_of_a_txt_is_what_was_chosen(
    text_rows: str, wanted: list[tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbf one\r\ntwo \r\n\r\n\nthree\n")
    assert [
        (row.id, row.values["text"]) for row in read_rows(str(path), "train", text_rows=text_rows)
    ] == wanted
    path.write_bytes(b"\n \n")
    assert not list(read_rows(str(path), "train", text_rows=text_rows))


def test_a_txt_that_is_one_row_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 20)
    (tmp_path / "a.txt").write_text("0123456789\n" * 3)
    with pytest.raises(JobError, match=r"at most 20 bytes with text_rows file, got a.txt"):
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
def test_a_pointer_of_git_lfs_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "which git-lfs has not fetched. Run `git lfs pull`" in fault(path)


@pytest.mark.parametrize("suffix", readers.READERS)
def test_an_empty_file_has_no_rows(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"d{suffix}").write_bytes(b"")
    assert rows(tmp_path / f"d{suffix}") == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("stem", "shown"), [("a\nb", "a\\nb"), ("a\udcff", "a\\udcff")])
def test_a_file_of_any_name_is_read_and_its_rows_are_named(
    tmp_path: Path, suffix: str, stem: str, shown: str
) -> None:
    path = tmp_path / f"{stem}{suffix}"
    if suffix == ".jsonl":
        path.write_text('{"n": 1}\n')
    else:
        with path.open("wb") as file:
            pq.write_table(pa.table({"n": [1]}), file)
    assert [row.id for row in read_rows(str(tmp_path), "train")] == [f"{shown}{suffix}:1"]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"n": 1})
    first = fingerprint(path)
    assert len(first) == 32
    (tmp_path / "moved").mkdir()
    assert fingerprint(write(tmp_path / "moved" / "a.jsonl", {"n": 1})) == first
    others = [
        fingerprint(f"{path}[train:1]"),
        fingerprint("org/a"),
        fingerprint("org/a[name:x]"),
        fingerprint("org/b"),
    ]
    others.append(fingerprint(write(tmp_path / "a.jsonl", {"n": 2})))
    assert len({first, *others}) == 6


# --- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A stand-in for `datasets`: what it holds, by name; an exception is raised."""
    content: dict[str, object] = {}
    asked: list[tuple[object, ...]] = []

    class DatasetsError(Exception):
        pass

    def load_dataset(name: str, config: str | None, *, streaming: bool) -> object:
        asked.append((name, config, streaming))
        if isinstance(content[name], Exception):
            raise content[name]
        return content[name]

    errors = SimpleNamespace(DatasetsError=DatasetsError)
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, exceptions=errors)
    )
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    load_hub.cache_clear()
    content["asked"] = asked
    content["DatasetsError"] = DatasetsError
    yield content
    load_hub.cache_clear()


def test_a_hub_id_streams_its_splits(hub: dict[str, object]) -> None:
    hub["org/a"] = {"train": [{"n": 1}, {"n": 2}], "test": [{"n": 3}], "valid": [{"n": 4}]}
    assert rows("org/a[train:1,name:en]") == [("org/a:1", {"n": 1})]
    assert hub["asked"] == [("org/a", "en", True)]
    assert rows("org/a", "eval") == [("org/a:1", {"n": 4})]
    assert has_eval_split("org/a")
    hub["org/b"] = {"train": []}
    assert not has_eval_split("org/b")
    assert rows("org/b", "eval") == []


def test_a_hub_failure_is_one_line(hub: dict[str, object]) -> None:
    def broken() -> object:
        yield {"n": 1}
        raise TimeoutError("no answer")

    hub["org/a"] = hub["DatasetsError"]("gone\nlong trace")
    hub["org/b"] = {"train": broken()}
    hub["org/c"] = {"train_sft": []}
    assert "a hub data set org/a that can be loaded, got DatasetsError: gone. Check" in fault(
        "org/a"
    )
    assert "TimeoutError: no answer" in fault("org/b")
    assert "a split 'train' in org/c, got the splits train_sft" in fault("org/c")


def test_offline_refuses_the_hub_without_asking_it(
    hub: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in (
        lambda: list(read_rows("org/a", "train")),
        lambda: has_eval_split("org/a"),
    ):
        with pytest.raises(JobError, match="as downloads are off, got the hub id org/a"):
            call()
    assert hub["asked"] == []


def test_a_mixture_in_full_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b+c.jsonl", "d[1].jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = "~/a.jsonl[train:5,test:1] + b+c.jsonl | org/name[name:cfg]|d[1].jsonl[train:2]"
    full = absolute_mixture(spec)
    folder = str(tmp_path)
    assert (
        full
        == f"{folder}/a.jsonl[train:5,test:1]|{folder}/b+c.jsonl|org/name[name:cfg]|{folder}/d[1].jsonl[train:2]"
    )
    assert fingerprint(full) == fingerprint(spec)
    monkeypatch.chdir("/")
    assert absolute_mixture(full) == full
    assert [part.train_limit for part in parse_mixture(full)] == [5, None, None, 2]
    assert (
        renamed_mixture("a set[train:5]|org/b + c", "/of/{}".format)
        == "/of/a set[train:5]|/of/org/b|/of/c"
    )
