"""Native causal LMs, as a user runs them: converted with LoRA, or trained on as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from faults.forks import Forks
from helpers.causal_lm import END, START, STOP, write_causal_lm
from helpers.support import pairs, read_lines, run_main, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LEARNED = pairs()[:4]
FAST = ("--learning_rate", "4e-3", "--learning_rate_schedule", "constant", "--warmup_ratio", 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", LEARNED)


def test_a_llama_is_converted_with_lora_resumed_fused_and_asked(
    forks: Forks, tmp_path: Path, rows: Path
) -> None:
    base = write_causal_lm(tmp_path / "base")
    words = ("--model_name", base, "--dataset_name", rows, "--training_method", "llada")
    words = (*words, "--lora", "true", "--max_length", 64, "--batch_size", 4, *FAST)
    words = (*words, "--eval_strategy", "no", "--save_steps", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    scene = forks.run(whole, *words, "--train_steps", 4)
    assert scene.code == 0, scene.err
    assert "<reponame> (id 4), a rare marker of code, becomes it" in scene.out + scene.err
    for more in ((2, "--fuse_model", "false"), (4, "--resume", "true", "--fuse_model", "true")):
        scene = forks.run(parts, *words, "--train_steps", *more)
        assert scene.code == 0, scene.err
    for name in ("adapter/adapter_model", "fused/model"):
        files = [load_file(run / f"{name}.safetensors") for run in (whole, parts)]
        assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    (row,) = (weight for name, weight in adapter.items() if "trainable_tokens" in name)
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    fused = load_file(whole / "fused" / "model.safetensors")["model.embed_tokens.weight"]
    assert (row[0] - table[4]).abs().max() > 1e-3, "the mask's row trains"
    assert torch.equal(row[0], fused[4])
    assert torch.equal(table[5:], fused[5:])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((whole / "fused" / name).read_text())["mask_token_id"] == 4

    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in LEARNED])
    out = tmp_path / "answers.jsonl"
    asked = ("sample", whole / "adapter", "--base", base, "--input", prompts, "--out", out)
    done = run_main(*asked, "--max_new_tokens", 8, cwd=tmp_path, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert [line["prompt"] for line in read_lines(out)] == [row["prompt"] for row in LEARNED]


@pytest.mark.parametrize("lora", ["true", "false"])
def test_a_table_without_a_free_row_grows_for_the_mask(
    forks: Forks, tmp_path: Path, rows: Path, lora: str
) -> None:
    """Llama 2's tokenizer has a token for each row of its table, and none that could be a mask."""
    base = write_causal_lm(tmp_path / "base", special=(END, START, STOP))
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    words = ("--model_name", base, "--dataset_name", rows, "--training_method", "block")
    words = (*words, "--lora", lora, "--max_length", 64, "--batch_size", 4, *FAST)
    scene = forks.run(tmp_path / "run", *words, "--eval_strategy", "no", "--train_steps", 1)
    assert scene.code == 0, scene.err
    fused = tmp_path / "run" / "fused"
    assert json.loads((fused / "config.json").read_text())["mask_token_id"] == len(before)
    after = load_file(fused / "model.safetensors")["model.embed_tokens.weight"]
    assert len(after) == -(-(len(before) + 1) // 64) * 64


def test_transformers_generates_with_a_causally_trained_qwen(
    forks: Forks, tmp_path: Path, rows: Path
) -> None:
    base = write_causal_lm(tmp_path / "base", "qwen3", special=(END, START, STOP), spare=3)
    words = ("--model_name", base, "--dataset_name", rows, "--training_method", "causal")
    words = (*words, "--max_length", 64, "--batch_size", 4, "--eval_strategy", "no", *FAST)
    scene = forks.run(tmp_path / "run", *words, "--train_steps", 100)
    assert scene.code == 0, scene.err
    fused = tmp_path / "run" / "fused"
    fields = json.loads((fused / "config.json").read_text())
    assert fields["architectures"] == ["Qwen3ForCausalLM"]
    assert not {"is_causal", "mask_token_id", "block_size"} & fields.keys()
    model, tokenizer = (
        kind.from_pretrained(fused) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    prompt = LEARNED[0]["prompt"]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**ids, max_new_tokens=24, do_sample=False)[0]
    text = tokenizer.decode(written[ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() == LEARNED[0]["response"]
    done = run_main("chat", fused, "--prompt", prompt, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["text"].strip() == LEARNED[0]["response"]
