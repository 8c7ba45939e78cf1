"""The examples of a corpus and of three stages, with fewer tokens."""

from __future__ import annotations

import json
from pathlib import Path

from faults.forks import Forks
from transformers import AutoConfig, AutoTokenizer


def test_example_corpus_trains_in_three_stages(forks: Forks, tmp_path: Path) -> None:
    corpus, run = tmp_path / "town", tmp_path / "stages"
    words = ("--config", "examples/prepare.yaml", "--out", corpus, "--json")
    done = forks.main("prepare", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokenizer"]["vocab_size"] == 1024
    assert found["dedup"]["exact_dropped"] > 300
    assert found["dedup"]["near_dropped"] > 400
    words = ("--config", "examples/modernbert-three-stages.yaml", "--dataset_name", corpus)
    scene = forks.run(run, *words, "--train_tokens", 12_000)
    assert scene.code == 0, scene.err
    folders = [run / name for name in ("1-pretrain", "2-extend", "3-decay")]
    results = [json.loads((folder / "run.json").read_text())["result"] for folder in folders]
    assert [result["outcome"] for result in results] == ["done"] * 3
    first, *_, last = (result["eval_loss"] for result in results)
    assert last < first < results[0]["eval_loss_first"]
    config = AutoConfig.from_pretrained(run / "fused")
    assert config.max_position_embeddings == 256
    assert AutoTokenizer.from_pretrained(run / "fused").chat_template
