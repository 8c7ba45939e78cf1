"""Manifest of a prepared folder: read in full, and refused with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.stored_folder import StoredPart, random_ids, write_stored

from plugin.base.errors import JobError
from plugin.data.stored.manifest import (
    is_stored,
    is_unfinished,
    manifest_digest,
    read_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parts = [
        StoredPart(random_ids(7), random_ids(2), weight=2.0),
        StoredPart(random_ids(3, seed=1), spec="b.jsonl"),
    ]
    return write_stored(tmp_path / "stored", parts, a_shard=4)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def refusal(folder: Path) -> str:
    with pytest.raises(JobError) as caught:
        read_manifest(folder)
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == ("dataset_name", 3)
    return str(problem)


def test_manifest_is_read_and_later_keys_are_ignored(folder: Path) -> None:
    found = read_manifest(folder)
    assert [(shard.split, shard.source, shard.documents) for shard in found.shards] == [
        ("train", 0, 4),
        ("train", 0, 3),
        ("train", 1, 3),
        ("eval", 0, 2),
    ]
    assert [source.weight for source in found.sources] == [2.0, 1.0]
    assert found.sources[1].files[0].name == "b.jsonl"
    assert (found.dtype, found.totals.documents) == ("uint16", 12)
    assert is_stored(folder)
    assert not is_unfinished(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"files": ["a"]}', '{"format": 1}', "\x00"])
def test_foreign_manifest_is_not_a_prepared_folder(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert not is_stored(tmp_path)
    assert not is_stored(tmp_path / "a.jsonl")
    assert not is_stored(tmp_path / "missing")


def test_unfinished_folder_names_the_way_to_finish(folder: Path) -> None:
    (folder / ".work").mkdir()
    assert not is_unfinished(folder), "its manifest is there: work of an earlier run is left over"
    (folder / "manifest.json").unlink()
    assert is_unfinished(folder)
    assert not is_stored(folder)
    assert "prepare did not finish here. Run it again with the same --out" in refusal(folder)


def test_another_format_is_refused_by_its_number(folder: Path) -> None:
    changed(folder, lambda values: values.update(format=2))
    assert is_stored(folder)
    assert "of format 2" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: values["shards"][0].update(name="../../etc/passwd"), "shards.0.name"),
        (lambda values: values["shards"][0].update(split="test"), "shards.0.split"),
        (lambda values: values["shards"][0].update(source=9), "of source 9"),
        (lambda values: values["shards"][0].update(tokens=-1), "shards.0.tokens"),
        (lambda values: values["sources"][0].update(weight=0), "sources.0.weight"),
        (lambda values: values["sources"][0].update(weight=float("nan")), "sources.0.weight"),
        (lambda values: values.update(dtype="float16"), "dtype"),
        (lambda values: values.pop("totals"), "totals"),
    ],
)
def test_wrong_value_is_refused_by_its_place(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    changed(folder, change)
    assert says in refusal(folder)


@pytest.mark.parametrize("part", ["ids", "offsets", "source"])
def test_missing_shard_is_refused_by_its_name(folder: Path, part: str) -> None:
    (folder / "train" / f"00001.{part}.npy").unlink()
    assert f"00001.{part}.npy, which is missing" in refusal(folder)


def test_shard_behind_a_link_is_refused(folder: Path) -> None:
    path = folder / "train" / "00000.ids.npy"
    path.rename(folder / "elsewhere.npy")
    path.symlink_to(folder / "elsewhere.npy")
    assert "00000.ids.npy" in refusal(folder)


def test_digest_follows_key_and_content(folder: Path) -> None:
    before = manifest_digest(folder)
    assert len(before) == 32
    assert manifest_digest(folder) == before
    changed(folder, lambda values: values["shards"][0].update(blake2b="f" * 32))
    assert manifest_digest(folder) != before
