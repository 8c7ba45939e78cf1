"""Conditions under which a folder may hold a new run, and its clean-up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.support import write_record

from plugin.base.errors import JobError
from plugin.run.folder import RunFolder, to_json


def test_clear_keeps_a_run_that_came_while_we_waited(tmp_path: Path) -> None:
    """Two starters saw an empty folder; the second gets the lock after the first run's end."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_record(folder.path, "done")
    with pytest.raises(JobError, match="which holds a run"):
        folder.clear()
    assert (folder / "run.json").exists()


def test_clear_keeps_lock_and_folders_of_other_machines(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with folder.locked(0, print):
        (folder / "data").mkdir()
        (folder / "metrics.jsonl").touch()
        (folder / "machine-1").mkdir()
        write_record(folder.path, "failed")
        folder.clear()
        assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "machine-1"]
    assert folder.problems() == []


def test_clear_with_a_link_is_refused(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", RunFolder(tmp_path / "run")
    outside.mkdir()
    (outside / "precious").touch()
    folder.create()
    (folder / "metrics.jsonl").touch()
    write_record(folder.path, "failed")
    (folder / "data").symlink_to(outside)
    with pytest.raises(JobError, match="with data, which is a link to"):
        folder.clear()
    folder.remove_refused()
    assert (outside / "precious").exists()
    assert (folder / "data").is_symlink(), "whoever put it there may take it away"


def test_unwritable_folder_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(JobError, match="a folder that can be written") as caught:
            RunFolder(path).create()
        assert caught.value.code == 2
    with (
        pytest.raises(JobError, match="a folder that can be written"),
        RunFolder(Path("/proc")).locked(0, print),
    ):
        pass


def test_non_finite_numbers_become_strings() -> None:
    assert (
        to_json({"a": float("nan"), "b": [float("-inf"), 1.5]})
        == '{"a": "nan", "b": ["-inf", 1.5]}'
    )


def test_folder_in_use_names_its_holder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_record(folder.path, None)
    with folder.locked(0, lambda line: None) as lock:
        (problem,) = folder.problems()
        assert problem.got.endswith("which holds a run"), "this process itself does not count"
        os.pwrite(lock, b"7654321\n", 0)  # as another one would hold it
        (problem,) = folder.problems()
        assert problem.got == f"{folder.path}, in use by process 7654321 or its workers"
    (problem,) = folder.problems()
    assert problem.got == f"{folder.path}, which holds a run"
    assert problem.fix.endswith("resume that run with --resume true.")


def test_remove_refused_keeps_foreign_entries(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_record(folder.path, "failed")
    (folder / "metrics.jsonl").touch()
    with folder.locked(0, lambda line: None):
        folder.remove_refused()
        assert (folder / "run.json").exists(), "another starter holds the folder"
    (folder / "theirs").touch()
    folder.remove_refused()
    assert [path.name for path in folder.path.iterdir()] == ["theirs"]
