"""Block diffusion, as a user runs it: trained, evaluated, resumed, checked, in packs and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.compare import differences
from faults.forks import Forks
from helpers.scenes import Scene
from helpers.support import pairs, read_lines, run_main, write_rows

from plugin.data.tokenizer import train_tokenizer
from plugin.models.configuration import new_config
from plugin.models.load import build_model, fit_config
from plugin.models.publish import write_model
from plugin.run.facts import ModelFacts

LEARNED = pairs()[:8]
CONFIG: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.04,
}
BLOCK = ("--training_method", "block", "--train_device", "cpu", "--max_length", 64)


@pytest.fixture(scope="module")
def causal_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a causal LM, as transformers saves one, whose tokenizer has a mask token."""
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = train_tokenizer([text for row in pairs() for text in row.values()], 300)
    file = folder / "config.json"
    file.write_text(json.dumps({**CONFIG, "vocab_size": len(tokenizer)}))
    config = new_config(str(file))
    fit_config(config, tokenizer)
    torch.manual_seed(0)
    write_model(folder / "model", build_model(config), tokenizer, ModelFacts())
    return folder / "model"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", LEARNED)


def train(forks: Forks, folder: Path, *words: object) -> Scene:
    done = forks.run(folder, *BLOCK, *words)
    assert done.code == 0, done.err
    return done


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "diffusion.json").read_text())


def test_answers_in_blocks_are_learned_and_resume_to_the_bit(
    forks: Forks, tmp_path: Path, causal_model: Path, rows: Path
) -> None:
    """The warm-up of the noise ends between two checkpoints."""
    words = ("--model_name", causal_model, "--dataset_name", rows, "--batch_size", 4)
    words = (*words, "--learning_rate", "4e-3", "--train_steps", 60, "--save_steps", 20)
    words = (*words, "--save_total_limit", 9, "--logging_steps", 7, "--eval_steps", 30)
    words = (*words, "--eval_share", 0.2, "--block_views", 2, "--noise_warmup_steps", 25)
    whole = train(forks, tmp_path / "whole", *words, "--block_size", 4)
    again = shutil.copytree(whole.folder, tmp_path / "again")
    resumed = train(forks, again, *words, "--block_size", 4, "--resume", again / "checkpoint-20")
    assert differences(resumed, whole) == []
    assert whole.result["eval_loss"] < whole.result["eval_loss_first"]
    facts = facts_of(whole.folder / "checkpoint-60")
    assert facts["block"] == {"size": 4, "clean_context": "block", "shift": False}
    assert (facts["method"], facts["eos_policy"], facts["block_views"]) == ("block", "grid", 2)
    sampler = facts["sampler"]
    assert (sampler["block_length"], sampler["steps"], sampler["cache"]) == (4, 4, "exact")
    config = json.loads((whole.folder / "checkpoint-60" / "config.json").read_text())
    assert (config["model_type"], config["block_size"]) == ("llama", 4)
    refused = forks.run(again, *BLOCK, *words, "--block_size", 8, "--resume", "true")
    assert refused.code == 2
    assert "block_size: expected 4, as this run was trained so far" in refused.err


def test_block_size_auto_is_sixteen_or_a_models_own(
    forks: Forks, tmp_path: Path, causal_model: Path, rows: Path
) -> None:
    words = ("--dataset_name", rows, "--batch_size", 4, "--train_steps", 2)
    words = (*words, "--eval_strategy", "no", "--fuse_model", "false", "--save_steps", 2)
    first = train(forks, tmp_path / "first", "--model_name", causal_model, *words)
    assert first.result["effective"] == {"block_size": 16}
    half = first.folder / "checkpoint-2"
    assert facts_of(half)["block"]["size"] == 16
    own = shutil.copytree(causal_model, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "block_size": 4}))
    for child in own.glob("checksums*"):
        child.unlink()
    second = train(forks, tmp_path / "second", "--model_name", own, *words)
    assert second.result["effective"] == {"block_size": 4}


def test_packs_follow_a_schedule_of_sizes_and_resume_within_it(
    forks: Forks, tmp_path: Path, causal_model: Path
) -> None:
    """Each step holds 2 x 64 tokens: sizes change after steps 4 and 8."""
    texts = [{"text": f"{row['prompt']} {row['response']}"} for row in pairs()] * 4
    data = write_rows(tmp_path / "texts.jsonl", texts)
    job = tmp_path / "job.yaml"
    job.write_text("block_schedule: [[0, 1], [512, 4], [1024, 8]]\n")
    words = ("--config", job, "--model_name", causal_model, "--dataset_name", data)
    words = (*words, "--training_stage", "pretrain", "--batch_size", 2, "--train_steps", 12)
    words = (*words, "--save_steps", 6, "--save_total_limit", 9, "--logging_steps", 1)
    words = (*words, "--clean_context", "causal", "--ar_loss_weight", 0.2, "--eval_steps", 6)
    whole = train(forks, tmp_path / "whole", *words, "--fuse_model", "false")
    again = shutil.copytree(whole.folder, tmp_path / "again")
    resumed = train(
        forks, again, *words, "--fuse_model", "false", "--resume", again / "checkpoint-6"
    )
    assert differences(resumed, whole) == []
    facts = facts_of(whole.folder / "checkpoint-6")
    assert facts["block"] == {"size": 8, "clean_context": "causal", "shift": False}
    other = train(
        forks,
        tmp_path / "other",
        *words,
        "--fuse_model",
        "false",
        "--block_schedule",
        "[[0, 1], [512, 4], [1152, 8]]",
    )
    losses = [
        [line["loss"] for line in read_lines(one.folder / "metrics.jsonl") if "loss" in line]
        for one in (whole, other)
    ]
    assert losses[0][:8] == losses[1][:8]
    assert losses[0][8] != losses[1][8], "the ninth step has another size"


def test_check_shows_a_document_in_blocks(tmp_path: Path, causal_model: Path, rows: Path) -> None:
    words = ("--model_name", causal_model, "--dataset_name", rows, *BLOCK, "--block_views", 2)
    done = run_main("check", *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert [view["t"] for view in plan["preview"]] == pytest.approx([0.15, 0.5, 0.9])
    masked = [view["masked"] for view in plan["preview"]]
    assert 0 < masked[0] < masked[1] < masked[2] < plan["tokens_first_step"]
    assert {"masked", "prompt"} <= {run["kind"] for run in plan["preview"][1]["runs"]}
    assert plan["first_loss"] > 1


def test_every_contradiction_is_one_line_by_name(
    tmp_path: Path, causal_model: Path, rows: Path
) -> None:
    words = ("--model_name", causal_model, "--dataset_name", rows, *BLOCK, "--packing", "off")
    words = (*words, "--block_size", 65, "--ar_loss_weight", 0.1, "--train_steps", 5)
    words = (*words, "--noise_warmup_steps", 6, "--block_schedule", "[[0, 4]]")
    done = run_main("train", *words, "--run_dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    fields = sorted(line.split()[1].rstrip(":") for line in done.stderr.splitlines())
    assert fields == [
        "ar_loss_weight",
        "block_schedule",
        "block_schedule",
        "block_size",
        "noise_warmup_steps",
        "packing",
    ]
    assert "training_stage pretrain as well" in done.stderr
