"""examples/prepare_slurm.py by datatrove's local executor: a task that crashes, run again, the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.corpora import changed, contents, run_prepare, sentences, write_texts
from helpers.support import ROOT

pytestmark = pytest.mark.datatrove

# Lets a task of a step crash, once.
CRASHES_A_TASK = """
import os, runpy, sys
from pathlib import Path
from plugin.corpus import steps

mark, real = Path(os.environ["LOST"]), steps._do


def lost(step, task):
    if step.name == "bands" and task == 4 and not mark.exists():
        mark.touch()
        raise RuntimeError("this task crashes")
    real(step, task)


steps._do = lost
"""


def run(config: Path, out: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = ["--config", str(config), "--out", str(out), "--tasks", "3", "--workers", "2"]
    command = [sys.executable, str(ROOT / "examples" / "prepare_slurm.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


def test_crashed_task_is_done_by_a_second_run_to_the_same_bytes(tmp_path: Path) -> None:
    base = sentences(300, words=60)
    data = write_texts(tmp_path / "a.jsonl", [*base, *(changed(text, 1) for text in base[:50])])
    config = tmp_path / "prepare.json"
    config.write_text(json.dumps({"dataset_name": str(data), "vocab_size": 512}))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHES_A_TASK)
    path = os.pathsep.join(map(str, [tmp_path / "site", ROOT, ROOT / ".datatrove"]))
    losing = {**os.environ, "PYTHONPATH": path, "LOST": str(tmp_path / "lost")}
    first = run(config, tmp_path / "out", losing)
    assert (tmp_path / "lost").exists(), first.stderr
    assert first.returncode != 0
    assert not (tmp_path / "out" / "manifest.json").exists()
    second = run(config, tmp_path / "out", losing)
    assert second.returncode == 0, second.stderr[-3000:]
    run_prepare(data, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
