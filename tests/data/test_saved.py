"""Folders of save_to_disk: the rows are those that `datasets` loads, or the folder is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from plugin.base.errors import JobError
from plugin.data.sources import fingerprint, has_eval_split, read_rows, skipped_files

ROWS = {
    "prompt": [f"Name {number}" for number in range(10)],
    "completion": [f"thing {number}" for number in range(10)],
}


def rows(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return [row.values for row in read_rows(str(folder), split)]


def save_drafts(folder: Path) -> None:
    """Add the caches of a map and a shuffle, as an interactive session leaves them."""
    loaded = datasets.load_from_disk(str(folder))
    drafted = loaded.map(
        lambda row: {"completion": f"DRAFT {row['completion']}"},
        cache_file_name=str(folder / "cache-1f.arrow"),
    )
    drafted.shuffle(seed=1, indices_cache_file_name=str(folder / "cache-2e.arrow"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


def test_saved_folder_is_read_without_its_caches(saved: Path) -> None:
    before = fingerprint(str(saved))
    save_drafts(saved)
    assert rows(saved) == datasets.load_from_disk(str(saved)).to_list()
    assert len(rows(saved)) == 10
    assert {Path(file).name for file in skipped_files(str(saved))} == {
        *("cache-1f.arrow", "cache-2e.arrow", "dataset_info.json", "state.json")
    }
    assert fingerprint(str(saved)) == before


def test_cache_is_no_data_in_any_folder(saved: Path) -> None:
    save_drafts(saved)
    (saved / "state.json").unlink()
    assert len(rows(saved)) == 10


def test_saved_dict_is_read_by_split(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict(ROWS)
    splits = {
        "train": whole.select(range(6)),
        "validation": whole.select(range(6, 8)),
        "test": whole.select(range(8, 10)),
    }
    folder = tmp_path / "dict"
    datasets.DatasetDict(splits).save_to_disk(folder)
    assert [row["prompt"] for row in rows(folder)] == [f"Name {number}" for number in range(6)]
    assert [row["prompt"] for row in rows(folder, "eval")] == ["Name 6", "Name 7"], (
        "the first eval split, as in a hub dataset"
    )
    assert has_eval_split(str(folder))
    assert "test" in {Path(file).name for file in skipped_files(str(folder))}
    assert [row["prompt"] for row in rows(folder / "test")] == ["Name 8", "Name 9"]


def change(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        change(state)
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            change(lambda state: state.update(_indices_data_files=[{"filename": "indices.arrow"}])),
            "_indices_data_files",
        ),
        (
            change(lambda state: state["_data_files"].append({"filename": "data-9.arrow"})),
            "data-9.arrow, which is missing",
        ),
        (
            change(lambda state: state["_data_files"].append({"filename": "../saved/state.json"})),
            "state.json, which is missing",
        ),
        (
            lambda folder: (folder / "state.json").write_text("{", encoding="utf-8"),
            "a readable state.json",
        ),
    ],
)
def test_unreadable_saved_folder_is_refused(
    spoil: Callable[[Path], None], says: str, saved: Path
) -> None:
    spoil(saved)
    with pytest.raises(JobError) as caught:
        rows(saved)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (3, "dataset_name")
    assert says in str(problem)


def test_saved_dict_without_train_split_names_its_splits(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"left": whole, "right": whole}).save_to_disk(tmp_path / "dict")
    with pytest.raises(JobError, match=r"a split 'train' in .*the splits left, right"):
        rows(tmp_path / "dict")
    shutil.rmtree(tmp_path / "dict" / "right")
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["left"]}', encoding="utf-8")
    assert len(rows(tmp_path / "dict")) == 10, "a single split is the one to train on"
