"""Sources: folders, fingerprints, and datasets of the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.data_rows import fault, rows, write

from plugin.base.errors import JobError
from plugin.data.hub import load_hub
from plugin.data.sources import fingerprint, has_eval_split, read_rows, skipped_files


def test_folder_is_split_by_file_name(tmp_path: Path) -> None:
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
    for folder in ("deeper", ".hidden", "validation"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "more.jsonl", {"from": folder})
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "events.jsonl", {"from": "a run"})
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "linked").symlink_to(tmp_path / "deeper")
    found = [values["from"] for _, values in rows(tmp_path)]
    assert sorted(found) == sorted([*train_names, "deeper"])
    found = [values["from"] for _, values in rows(tmp_path, "eval")]
    assert sorted(found) == sorted([*eval_names, "validation"])
    assert has_eval_split(str(tmp_path))
    assert [Path(name).name for name in skipped_files(str(tmp_path))] == [
        ".hidden.jsonl",
        "README.md",
        "index.json",
        "script.py",
    ]
    assert len(rows(f"{tmp_path}[train:1,test:2]", "eval")) == 2


def test_eval_names_alone_are_read_as_train(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", {"n": 1})
    for spec in (str(tmp_path), file):
        assert rows(spec) == [("test.jsonl:1", {"n": 1})]
        assert not has_eval_split(spec)


def test_folder_without_data_or_with_archives_is_refused(tmp_path: Path) -> None:
    assert "a folder with .jsonl" in fault(tmp_path)
    write(tmp_path / "a.jsonl", {})
    (tmp_path / "b.jsonl.xz").write_bytes(b"")
    assert ".json, .csv, .txt may be packed as .gz or .zst" in fault(tmp_path)
    assert "b.jsonl.xz" in fault(tmp_path)


def test_fingerprint_depends_on_the_content(tmp_path: Path) -> None:
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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Replace `datasets` by a stand-in: its content by name; an exception is raised."""
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


def test_hub_id_streams_its_splits(hub: dict[str, object]) -> None:
    hub["org/a"] = {"train": [{"n": 1}, {"n": 2}], "test": [{"n": 3}], "valid": [{"n": 4}]}
    assert rows("org/a[train:1,name:en]") == [("org/a:1", {"n": 1})]
    assert hub["asked"] == [("org/a", "en", True)]
    assert rows("org/a", "eval") == [("org/a:1", {"n": 4})]
    assert has_eval_split("org/a")
    hub["org/b"] = {"train": []}
    assert not has_eval_split("org/b")
    assert rows("org/b", "eval") == []


def test_hub_failure_is_one_line(hub: dict[str, object]) -> None:
    def broken() -> object:
        yield {"n": 1}
        raise TimeoutError("no answer")

    hub["org/a"] = hub["DatasetsError"]("gone\nlong trace")
    hub["org/b"] = {"train": broken()}
    hub["org/c"] = {"train_sft": []}
    assert "a hub dataset org/a that can be loaded, got DatasetsError: gone. Check" in fault(
        "org/a"
    )
    assert "TimeoutError: no answer" in fault("org/b")
    assert "a split 'train' in org/c, got the splits train_sft" in fault("org/c")


def test_offline_refuses_the_hub_without_a_request(
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
