"""Files of denoisings below a root, and names that lead outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.run_folders import write_run

from plugin.player.saved import DEPTH, below, denoising_files, folders_below

STEP = json.dumps({"step": 0, "positions": [0], "text": "x"}) + "\n"


def test_files_of_runs_and_traces_are_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("stages/1-a/samples.jsonl", "stages/1-a/mine.jsonl", "traces/t.jsonl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(STEP)
    (root / "stages" / "1-a" / "run.json").write_text("{")
    (root / "stages" / "t.jsonl").write_text(STEP)
    (root / "traces" / "data.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "secret.jsonl").write_text(STEP)
    (root / "traces" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    found = ["stages/1-a/mine.jsonl", "stages/1-a/samples.jsonl", "traces/t.jsonl"]
    assert denoising_files(root) == found
    assert denoising_files(root / "missing") == []


def test_links_and_deep_folders_are_not_walked(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcde")
    deep.mkdir(parents=True)
    write_run(tmp_path / ".hidden")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    names = [name for name, _ in folders_below(tmp_path)]
    assert names == ["", "a", "a/b", "a/b/c"]
    assert names[-1].count("/") + 1 == DEPTH


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "/etc", "out/x", "a\0", "link"])
def test_names_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(root / "a")
    (root / "out").symlink_to(tmp_path)
    assert below(root, name) is None
    assert below(root, "a/b.jsonl") == root / "a" / "b.jsonl"
