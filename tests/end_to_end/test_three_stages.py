"""The examples of a corpus and of three stages, with fewer tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import ROOT
from transformers import AutoConfig, AutoTokenizer

pytestmark = pytest.mark.end_to_end


def main(*words: object) -> str:
    command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_example_corpus_trains_in_three_stages(tmp_path: Path) -> None:
    corpus, run = tmp_path / "town", tmp_path / "stages"
    found = json.loads(
        main("prepare", "--config", "examples/prepare.yaml", "--out", corpus, "--json")
    )
    assert found["tokenizer"]["vocab_size"] == 1024
    assert found["dedup"]["exact_dropped"] > 300
    assert found["dedup"]["near_dropped"] > 400
    stages = ["--config", "examples/modernbert-three-stages.yaml", "--run_dir", run]
    main("train", *stages, "--dataset_name", corpus, "--train_tokens", 12_000)
    folders = [run / name for name in ("1-pretrain", "2-extend", "3-decay")]
    results = [json.loads((folder / "run.json").read_text())["result"] for folder in folders]
    assert [result["outcome"] for result in results] == ["done"] * 3
    first, *_, last = (result["eval_loss"] for result in results)
    assert last < first < results[0]["eval_loss_first"]
    config = AutoConfig.from_pretrained(run / "fused")
    assert config.max_position_embeddings == 256
    assert AutoTokenizer.from_pretrained(run / "fused").chat_template
