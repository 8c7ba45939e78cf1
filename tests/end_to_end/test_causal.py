"""Autoregressive baseline, as a user runs it: trained, evaluated, resumed, adapted, fused, asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.forks import Forks
from helpers.published_checkpoints import CONFIGS, write_checkpoint
from helpers.support import pairs, read_lines, run_main, write_rows
from safetensors.torch import load_file

from plugin.models.load import load_model

LEARNED = pairs()[:8]
METHOD = ("--training_method", "causal")
FAST = ("--learning_rate", "4e-3", "--learning_rate_schedule", "constant", "--warmup_ratio", 0)


def train(forks: Forks, folder: Path, *words: object) -> dict[str, Any]:
    """Run `main.py train` into `folder`. Return the `result` of its run.json."""
    scene = forks.run(folder, "--max_length", 64, *METHOD, *FAST, *words)
    assert scene.code == 0, scene.err
    return scene.json("run.json")["result"]


def ask(forks: Forks, model: Path, prompt: str, *words: object) -> str:
    done = forks.main("chat", model, "--prompt", prompt, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", LEARNED)


def base(folder: Path, family: str = "llada") -> Path:
    texts = [text for row in pairs() for text in row.values()]
    return write_checkpoint(folder / family, family, texts)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_pairs_are_learned_and_answered_left_to_right(
    family: str, forks: Forks, tmp_path: Path, rows: Path
) -> None:
    words = ("--model_name", base(tmp_path, family), "--dataset_name", rows, "--batch_size", 8)
    run = tmp_path / "run"
    result = train(forks, run, *words, "--train_steps", 150, "--eval_strategy", "no")
    assert result["loss"] < 0.05
    assert result["fuse"]["max_logit_difference"] < 1e-5
    facts = json.loads((run / "fused" / "diffusion.json").read_text())
    assert (facts["method"], facts["eos_policy"], facts["loss_norm"]) == (
        "causal",
        "single",
        "token",
    )
    assert (facts["sampler"]["block_length"], facts["sampler"]["steps"]) == (1, 1)
    assert "noise_schedule" not in facts
    assert json.loads((run / "fused" / "config.json").read_text())["causal"] is True
    card = (run / "fused" / "README.md").read_text()
    assert "trained by next-token prediction" in card
    assert "diffusion" not in card.partition("## Use")[0]
    for row in LEARNED[:2]:
        assert ask(forks, run, row["prompt"]) == row["response"]
    asked = ("chat", run, "--prompt", "x", "--steps", 4, "--block_length", 4)
    refused = forks.main(*asked).stderr.splitlines()
    assert [line.split()[1] for line in refused] == ["block_length:", "steps:"]


def test_an_adapter_is_causal_on_its_base(forks: Forks, tmp_path: Path, rows: Path) -> None:
    model = base(tmp_path)
    words = ("--model_name", model, "--dataset_name", rows, "--batch_size", 8, "--lora", "true")
    run = tmp_path / "run"
    result = train(forks, run, *words, "--train_steps", 20, "--eval_strategy", "no")
    assert result["fuse"]["max_logit_difference"] < 1e-5
    prompt = LEARNED[0]["prompt"]
    answer = ask(forks, run, prompt, "--max_new_tokens", 6)
    assert ask(forks, run / "adapter", prompt, "--base", model, "--max_new_tokens", 6) == answer
    words = ("--adapter", run / "adapter", "--model_name", model, "--out", tmp_path / "again")
    done = forks.main("fuse", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["max_logit_difference"] < 1e-5
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, weight in load_file(run / "fused" / "model.safetensors").items():
        assert (weight - again[name]).abs().max() < 1e-6
    assert load_model(str(tmp_path / "again")).config.causal
    assert not load_model(str(model)).config.causal, "the base stays what it was"


def test_a_resumed_run_ends_as_an_undisturbed_one(forks: Forks, tmp_path: Path, rows: Path) -> None:
    words = ("--model_name", base(tmp_path), "--dataset_name", rows, "--batch_size", 2)
    words = (*words, "--save_steps", 2, "--eval_strategy", "no")
    train(forks, tmp_path / "whole", *words, "--train_steps", 6)
    train(forks, tmp_path / "parts", *words, "--train_steps", 4)
    train(forks, tmp_path / "parts", *words, "--train_steps", 6, "--resume", "true")
    whole, parts = (
        load_file(tmp_path / name / "fused" / "model.safetensors") for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all((whole[name] - parts[name]).abs().max() < 1e-6 for name in whole)


def test_texts_from_scratch_are_evaluated_in_nats_a_token(forks: Forks, tmp_path: Path) -> None:
    """The loss of a new model is near ln(vocabulary), and that of every bucket of noise is one."""
    texts = [{"text": f"{row['prompt']} {row['response']}"} for row in pairs()] * 3
    data = write_rows(tmp_path / "texts.jsonl", texts)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIGS["llada"] | {"vocab_size": 320}))
    words = ("--model_config", config, "--dataset_name", data, "--training_stage", "pretrain")
    run = tmp_path / "run"
    result = train(forks, run, *words, "--train_steps", 30, "--noise_schedule", "cosine")
    assert 5 < result["eval_loss_first"] < 6.5
    assert result["eval_loss"] < result["eval_loss_first"] - 1
    last = [line for line in read_lines(run / "metrics.jsonl") if "eval/loss" in line][-1]
    assert last["eval/loss_t00_10"] == pytest.approx(last["eval/loss"], rel=1e-5)
    assert not [name for name in last if name.startswith("eval/loss_t") and name[-5:] != "00_10"]


def test_an_encoder_has_no_causal_form(tmp_path: Path, tiny_config: Path, rows: Path) -> None:
    words = ("--model_config", tiny_config, "--dataset_name", rows, *METHOD)
    done = run_main("train", *words, "--run_dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error[2]: training_method: expected bert for a ModernBert")


def test_check_shows_what_a_causal_model_sees(forks: Forks, tmp_path: Path, rows: Path) -> None:
    words = ("--model_name", base(tmp_path), "--dataset_name", rows, *METHOD, "--max_length", 64)
    done = forks.main("check", *words, "--json")
    assert done.returncode == 0, done.stderr
    (view,) = json.loads(done.stdout)["plan"]["preview"]
    assert (view["t"], view["masked"]) == (0, 0)
    assert {run["kind"] for run in view["runs"]} <= {"prompt", "answer"}
