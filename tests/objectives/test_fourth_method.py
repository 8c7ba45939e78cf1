"""The seams of a method: a toy fourth one is parsed, ruled and trained by the real loop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.published_checkpoints import write_checkpoint
from helpers.support import ROOT, run_python
from safetensors.numpy import load_file, save_file

PAIRS = [
    ("How are you?", "fine"),
    ("What is red?", "a rose, or coal that burns"),
    ("Why?", "so it is"),
]
PROGRAM = """\
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from helpers.fourth_method import train
print(train(Path({base!r}), Path({folder!r}), {pairs!r}))
"""


@pytest.mark.end_to_end
def test_fourth_method_of_a_row_and_an_objective_trains(tmp_path: Path) -> None:
    """Under uniform logits a document of L masked tokens costs L ln V, here squared."""
    base = write_checkpoint(tmp_path / "base", "bert", [text for pair in PAIRS for text in pair])
    weights = load_file(base / "model.safetensors")
    zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
    save_file(zeros, base / "model.safetensors", {"format": "pt"})
    words = json.loads((base / "config.json").read_text())["vocab_size"]
    program = PROGRAM.format(root=str(ROOT), base=str(base), folder=str(tmp_path), pairs=PAIRS)
    done = run_python(program, cwd=tmp_path, timeout_s=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["method"] == "squared"
    assert sorted(set(found["supervised"])) == sorted(found["supervised"]), "three lengths"
    cost = np.mean((np.array(found["supervised"]) * math.log(words)) ** 2)
    assert found["losses"][0] == pytest.approx(cost, rel=1e-5)
    assert found["losses"][-1] < 0.9 * cost
