"""The mixture grammar: names, limits, separators, and the error of each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.data_rows import fault, rows, write

from plugin.base.errors import JobError
from plugin.data.mixture import Part, absolute_mixture, parse_mixture, renamed_mixture
from plugin.data.sources import fingerprint


def test_grammar_of_names_limits_and_separators() -> None:
    assert parse_mixture("org/a[train:5_000,test:100,name:en-us] | b+c") == (
        Part("org/a", None, "en-us", 5000, 100),
        Part("b", None),
        Part("c", None),
    )
    for word in ("eval", "valid", "validation", "test"):
        assert parse_mixture(f"a[{word}:7]") == (Part("a", None, None, None, 7),)
    assert parse_mixture("a[name:x+y|z]") == (Part("a", None, "x+y|z"),)


def test_existing_paths_are_taken_literally(tmp_path: Path) -> None:
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
        ("a[test:1,eval:2]", ["a single eval in the brackets of a, got another one, 'eval:2'"]),
        ("a[train:1", ["NAME or NAME[train:N,test:N,name:CONFIG], got 'a[train:1'"]),
        ("no.jsonl", ["the missing file no.jsonl"]),
        ("./no", ["the missing file ./no"]),
        ("~/no-such", ["the missing file ~/no-such"]),
        ("no such", ["or a hub id, got 'no such', which is neither"]),
        ("a[train:x,what] + no.csv|", ["got 'x'", "got 'what'", "no.csv", "got ''"]),
    ],
)
def test_every_mistake_of_a_spec_is_reported(spec: str, messages: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        parse_mixture(spec)
    assert len(caught.value.problems) == len(messages)
    for problem, message in zip(caught.value.problems, messages, strict=True):
        assert problem.field == "dataset_name"
        assert message in str(problem)


def test_mixture_concatenates_with_limits(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", *({"n": n} for n in range(5)))
    second = write(tmp_path / "b.jsonl", *({"n": n} for n in range(10, 13)))
    spec = f"{first}[train:2]|{second}+{first}[train:1_0]"
    assert [values["n"] for _, values in rows(spec)] == [0, 1, 10, 11, 12, 0, 1, 2, 3, 4]
    assert rows(spec, "eval") == []


def test_files_of_one_name_get_different_row_ids(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    first, second = write(tmp_path / "a.jsonl", {}), write(tmp_path / "x" / "a.jsonl", {})
    assert [row_id for row_id, _ in rows(f"{first}|{second}")] == [f"{first}:1", f"{second}:1"]


def test_unknown_file_kind_is_refused(tmp_path: Path) -> None:
    for name, message in [
        ("a.jsonl.xz", ".json, .csv, .txt may be packed as .gz or .zst"),
        ("a.py", "Dataset scripts are never run"),
        ("a.tsv", "expected a .jsonl, .json, .csv, .parquet, .arrow, .txt file or a folder"),
    ]:
        (tmp_path / name).write_text("{}")
        assert message in fault(tmp_path / name)
    with pytest.raises(JobError, match="no 'name:' for"):
        parse_mixture(f"{tmp_path / 'a.py'}[name:x]")


def test_absolute_mixture_is_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b+c.jsonl", "d[1].jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = "~/a.jsonl[train:5,test:1] + b+c.jsonl | org/name[name:cfg]|d[1].jsonl[train:2]"
    full = absolute_mixture(spec)
    folder = str(tmp_path)
    assert full.split("|") == [
        f"{folder}/a.jsonl[train:5,test:1]",
        f"{folder}/b+c.jsonl",
        "org/name[name:cfg]",
        f"{folder}/d[1].jsonl[train:2]",
    ]
    assert fingerprint(full) == fingerprint(spec)
    monkeypatch.chdir("/")
    assert absolute_mixture(full) == full
    assert [part.train_limit for part in parse_mixture(full)] == [5, None, None, 2]
    assert (
        renamed_mixture("a set[train:5]|org/b + c", "/of/{}".format)
        == "/of/a set[train:5]|/of/org/b|/of/c"
    )


def test_weight_is_read_where_parts_are_weighed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"n": 1})
    parts = parse_mixture(f"{file}[train:5,weight:2.5]|{file}[weight:.5]|{file}", weights=True)
    assert [(part.train_limit, part.weight) for part in parts] == [(5, 2.5), (None, 0.5), (None, 1)]
    with pytest.raises(JobError, match="prepare"):
        parse_mixture(f"{file}[weight:2]")
    for wrong in ("0", "-1", "1e3", "x", "", "1001", "nan"):
        with pytest.raises(JobError, match=r"0\.001 to 1000|in the brackets"):
            parse_mixture(f"{file}[weight:{wrong}]", weights=True)
