"""Runs of a larger model with the weights of a smaller one, by `init_from`."""

from __future__ import annotations

import json
from pathlib import Path

from faults.forks import Forks
from helpers.corpora import VOCABULARY, run_prepare, sentences, write_texts
from helpers.support import ERROR, TINY_CONFIG

LARGER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}


def config_of(folder: Path, **changes: object) -> Path:
    path = folder / "larger.json"
    path.write_text(json.dumps({**TINY_CONFIG, "num_attention_heads": 4, **LARGER, **changes}))
    return path


def test_tiled_model_trains_with_the_sources_tokenizer(
    forks: Forks, tiny_bert: Path, pairs_file: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForMaskedLM

    from plugin.models.load import load_model
    from plugin.models.tiling import tile

    job = ("--model_config", config_of(tmp_path), "--dataset_name", pairs_file)
    job += ("--init_from", tiny_bert, "--learning_rate", "1e-9", "--train_steps", 2)
    done = forks.run(tmp_path / "run", *job, "--max_length", 64, "--train_device", "cpu")
    assert done.code == 0, done.err
    fused = done.folder / "fused"
    words = [json.loads((at / "tokenizer.json").read_text())["model"] for at in (fused, tiny_bert)]
    assert words[0] == words[1]
    assert done.json("run.json")["params"]["init_from"] == str(tiny_bert)
    assert "| tiled from | tiny\\_bert |" in (fused / "README.md").read_text()
    small = load_model(str(tiny_bert)).get_input_embeddings().weight
    large = AutoModelForMaskedLM.from_pretrained(fused).get_input_embeddings().weight
    assert (tile(small, tuple(large.shape)) - large).abs().max() < 1e-6


def test_sources_that_cannot_be_tiled_are_refused_by_name(
    forks: Forks, tiny_bert: Path, pairs_file: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    job = ("--model_config", config_of(tmp_path, num_hidden_layers=1, num_attention_heads=2))
    job += ("--dataset_name", pairs_file, "--max_length", 64, "--train_device", "cpu")
    causes = {tiny_bert: "num_hidden_layers at most 1, heads 32 wide, got", missing: "missing"}
    for source, cause in causes.items():
        done = forks.run(tmp_path / "run", *job, "--init_from", source)
        found = [match for line in done.err.splitlines() if (match := ERROR.match(line))]
        assert {(match[1], match[2]) for match in found} == {("4", "init_from")}, done.err
        assert cause in done.err
    assert not (tmp_path / "run").exists()


def test_prepared_folder_keeps_one_tokenizer_through_tiling(
    forks: Forks, tiny_bert: Path, tmp_path: Path
) -> None:
    """A source that was trained on the folder has its tokenizer; any other one is refused."""
    data = tmp_path / "prepared"
    run_prepare(write_texts(tmp_path / "a.jsonl", sentences(60)), data)
    small = tmp_path / "small.json"
    small.write_text(json.dumps({**TINY_CONFIG, "vocab_size": VOCABULARY}))
    job = ("--dataset_name", data, "--training_stage", "pretrain", "--objective", "mlm")
    job += ("--train_steps", 2, "--max_length", 64, "--train_device", "cpu")
    source = forks.run(tmp_path / "first", *job, "--model_config", small)
    assert source.code == 0, source.err
    larger = ("--model_config", config_of(tmp_path, vocab_size=VOCABULARY))
    done = forks.run(tmp_path / "large", *job, *larger, "--init_from", source.folder / "fused")
    assert done.code == 0, done.err
    other = forks.run(tmp_path / "other", *job, *larger, "--init_from", tiny_bert)
    assert other.code == 2
    assert "init_from: expected the tokenizer that" in other.err
