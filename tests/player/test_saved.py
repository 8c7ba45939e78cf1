"""Files of denoisings below a root, and names that lead outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.player.saved import below, denoising_files

STEP = json.dumps({"step": 0, "positions": [0], "text": "x"}) + "\n"


def test_files_of_runs_and_traces_are_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("stages/1-a/samples.jsonl", "stages/1-a/mine.jsonl", "traces/t.jsonl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(STEP)
    (root / "stages" / "1-a" / "run.json").write_text("{")
    (root / "link").symlink_to(tmp_path)
    (root / "traces" / "data.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "secret.jsonl").write_text(STEP)
    (root / "traces" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    found = ["stages/1-a/mine.jsonl", "stages/1-a/samples.jsonl", "traces/t.jsonl"]
    assert denoising_files(root, ["stages", "stages/1-a", "link", "gone"]) == found
    assert denoising_files(root / "missing", []) == []


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "/etc", "out/x", "a\0", "link"])
def test_names_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(root / "a")
    (root / "out").symlink_to(tmp_path)
    assert below(root, name) is None
    assert below(root, "a/b.jsonl") == root / "a" / "b.jsonl"
