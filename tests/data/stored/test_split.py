"""Documents of a prepared folder: read as they were written, and compared with their digests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.stored_folder import StoredPart, random_ids, write_stored

from plugin.base.errors import JobError
from plugin.data.stored import split as split_module
from plugin.data.stored.manifest import read_manifest
from plugin.data.stored.split import StoredSplit, check_shards

TRAIN, OTHER, HELD = random_ids(11), random_ids(5, seed=1), random_ids(3, seed=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parts = [StoredPart(TRAIN, HELD), StoredPart(OTHER, spec="b.jsonl")]
    return write_stored(tmp_path / "stored", parts, a_shard=4)


def opened(folder: Path, split: str = "train") -> StoredSplit:
    return StoredSplit(folder, read_manifest(folder), "eval" if split == "eval" else "train")


def refusal(folder: Path) -> str:
    with pytest.raises(JobError) as caught:
        check_shards(folder, read_manifest(folder))
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == ("dataset_name", 3)
    return str(problem)


@pytest.mark.parametrize("open_shards", [1, 128])
def test_documents_are_read_as_they_were_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, open_shards: int
) -> None:
    monkeypatch.setattr(split_module, "OPEN_SHARDS", open_shards)
    one = opened(folder)
    wanted = [*TRAIN, *OTHER]
    assert len(one) == len(wanted)
    assert [one.tokens(number).tolist() for number in range(len(one))] == wanted
    assert one.tokens(0).dtype == np.uint16
    assert np.concatenate(list(one.lengths())).tolist() == [len(ids) for ids in wanted]
    held = opened(folder, "eval")
    assert [held.tokens(number).tolist() for number in range(len(held))] == HELD
    for beyond in (-1, len(one)):
        with pytest.raises(IndexError):
            one.tokens(beyond)


def test_row_of_a_document_names_its_file_and_line(folder: Path) -> None:
    one = opened(folder)
    rows = [one.row(number) for number in (0, 10, 11, 15)]
    assert rows == ["a.jsonl:1", "a.jsonl:11", "b.jsonl:1", "b.jsonl:5"]


@pytest.mark.parametrize("interleaved", [False, True])
def test_documents_of_a_source_are_found_in_its_shards(folder: Path, interleaved: bool) -> None:
    if interleaved:
        path = folder / "manifest.json"
        values = json.loads(path.read_text())
        values["shards"] = [values["shards"][place] for place in (3, 0, 4, 1, 2, 5)]
        path.write_text(json.dumps(values))
    one = opened(folder)
    assert one.sizes == [11, 5]
    sources = np.array([0] * 11 + [1] * 5)
    numbers = one.numbers(sources, np.array([*range(11), *range(5)]))
    assert [one.tokens(number).tolist() for number in numbers.tolist()] == [*TRAIN, *OTHER]
    assert opened(folder, "eval").sizes == [3, 0]


def test_intact_shards_pass_without_a_note(folder: Path) -> None:
    assert check_shards(folder, read_manifest(folder)) == ""


def test_changed_id_is_found_by_its_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "train" / "00001.ids.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "00001.ids.npy: its content was changed" in refusal(folder)
    monkeypatch.setattr(split_module, "VERIFIED", 10)
    note = check_shards(folder, read_manifest(folder))
    assert "by size alone; `prepare --verify`" in note


@pytest.mark.parametrize(
    ("part", "array", "says"),
    [
        ("ids", np.zeros(3, np.uint16), "ids.npy: uint16"),
        ("ids", np.zeros(3, np.int64), "int64[3] found"),
        ("offsets", np.zeros(3, np.int64), "int64[5] expected, int64[3] found"),
        ("offsets", np.zeros(5, np.int64), "do not rise from 0 to"),
        ("offsets", np.array([0, 9, 1, 2, 3]), "do not rise from 0 to"),
        ("source", np.zeros((4, 3), np.int64), "int64[4, 2] expected"),
    ],
)
def test_wrong_array_is_refused_by_its_shape(
    folder: Path, part: str, array: np.ndarray, says: str
) -> None:
    np.save(folder / "train" / f"00000.{part}.npy", array)
    assert says in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x80\x04N."])
def test_file_that_is_no_array_is_refused(folder: Path, content: bytes) -> None:
    (folder / "train" / "00000.ids.npy").write_bytes(content)
    assert "00000.ids.npy" in refusal(folder)


def test_cut_file_is_refused(folder: Path) -> None:
    path = folder / "train" / "00000.ids.npy"
    path.write_bytes(path.read_bytes()[:-2])
    assert "00000.ids.npy" in refusal(folder)


def test_file_cut_during_a_run_is_named(folder: Path) -> None:
    one = opened(folder)
    one.tokens(0)
    path = folder / "train" / "00000.ids.npy"
    os.truncate(path, path.stat().st_size - 2 * len(TRAIN[3]))
    assert one.tokens(2).tolist() == TRAIN[2]
    with pytest.raises(JobError, match=r"00000.ids.npy: it ends before item"):
        one.tokens(3)
