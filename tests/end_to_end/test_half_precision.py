"""Runs in bfloat16: every method, in full, LoRA and QLoRA, packed and padded.

Recomputed and compiled, they are checked, trained and resumed as small runs in forked children of
one process. One run a method goes through both programs as a user starts them.
"""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.forks import Forks
from helpers.published_checkpoints import write_checkpoint
from helpers.support import pairs, read_lines, run_main
from safetensors.torch import load_file

from plugin.config.params import Params
from plugin.worker.check import try_out

METHODS = ("bert", "llada", "dream")
KINDS: dict[str, dict[str, str]] = {
    "full": {},
    "lora": {"lora": "true"},
    "qlora": {"lora": "true", "load_in_4bit": "true"},
}
LAYOUTS = {"packed": {"packing": "on"}, "padded": {"packing": "off"}}
# recompute x compile; `selective` with compiled layers is refused by name.
WAYS = {
    "plain": ("none", "off"),
    "selective": ("selective", "off"),
    "full-compiled": ("full", "on"),
}
TIMES = ("tokens_per_s", "supervised_tokens_per_s")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("half")
    texts = [text for row in pairs() for text in row.values()]
    return {method: write_checkpoint(folder / method, method, texts) for method in METHODS}


def values(method: str, kind: str, layout: str, way: str, base: Path, data: Path) -> dict[str, str]:
    recompute, compiled = WAYS[way]
    fixed = {
        "training_method": method,
        "model_name": str(base),
        "dataset_name": str(data),
        "dtype": "bfloat16",
    }
    fixed |= {
        "recompute": recompute,
        "compile": compiled,
        "max_length": "64",
        "batch_size": "4",
        "eval_strategy": "no",
    }
    fixed |= {
        "train_steps": "4",
        "save_steps": "2",
        "learning_rate": "1e-3",
        "warmup_ratio": "0",
        "logging_steps": "1",
    }
    return fixed | KINDS[kind] | LAYOUTS[layout]


def options(chosen: dict[str, str]) -> list[str]:
    return [word for name, value in chosen.items() for word in (f"--{name}", value)]


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        key: value
        for file in sorted(checkpoint.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


# Compiled layers do not depend on packing and take the most time here: they run packed only.
CELLS = [
    cell
    for cell in product(METHODS, KINDS, LAYOUTS, WAYS)
    if cell[2:] != ("padded", "full-compiled")
]


@pytest.mark.parametrize(("method", "kind", "layout", "way"), CELLS)
def test_bfloat16_run_trains_and_resumes_to_the_bit(
    method: str,
    kind: str,
    layout: str,
    way: str,
    bases: dict[str, Path],
    pairs_file: Path,
    forks: Forks,
    tmp_path: Path,
) -> None:
    chosen = values(method, kind, layout, way, bases[method], pairs_file)
    chosen["fuse_model"] = str(way == "plain").lower()
    env = {"TEST_COMPILE_BACKEND": "eager"}
    whole = forks.start(tmp_path / "whole", *options(chosen), env=env).wait()
    assert whole.code == 0, whole.err
    result = json.loads((whole.folder / "run.json").read_text())["result"]
    assert (result["outcome"], result["steps"]) == ("done", 4)
    if (
        way == "plain"
    ):  # bfloat16 weights have 8 bits: logits of the merged ones agree to a few of their last
        assert result["fuse"]["max_logit_difference"] < 0.1
        assert result["fuse"]["chat_template_as_trained"]

    broken = Path(shutil.copytree(whole.folder, tmp_path / "broken"))
    shutil.rmtree(broken / "checkpoint-4")
    shutil.rmtree(broken / "fused", ignore_errors=True)
    resumed = forks.start(
        broken, *options(chosen), "--resume", "true", "--run_dir", broken, env=env
    ).wait()
    assert resumed.code == 0, resumed.err
    first, again = (weights_of(folder / "checkpoint-4") for folder in (whole.folder, broken))
    assert first.keys() == again.keys()
    assert [key for key in first if not torch.equal(first[key], again[key])] == []
    before = weights_of(broken / "checkpoint-2")
    assert any(not torch.equal(before[key], first[key]) for key in first), (
        "the last two steps moved nothing"
    )
    assert metrics(broken) == metrics(whole.folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = read_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize(("method", "kind", "layout"), list(product(METHODS, KINDS, LAYOUTS)))
def test_bfloat16_job_is_checked(
    method: str, kind: str, layout: str, bases: dict[str, Path], pairs_file: Path
) -> None:
    chosen: dict[str, Any] = values(method, kind, layout, "plain", bases[method], pairs_file)
    notes: list[str] = []
    report = try_out(Params.model_validate(chosen), 1, notes)
    assert report["precision"] == "bfloat16"
    assert 0 < report["first_loss"] < 50
    assert report["memory"]["peak"] > 0
    assert any(f"{layout} " in note for note in notes if note.startswith("attention:"))


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_lora_runs_through_both_programs(
    method: str, bases: dict[str, Path], pairs_file: Path, tmp_path: Path
) -> None:
    chosen = values(method, "lora", "packed", "plain", bases[method], pairs_file)
    checked = run_main("check", *options(chosen), "--json", timeout_s=120)
    assert checked.returncode == 0, checked.stderr
    done = run_main("train", *options(chosen), "--run_dir", tmp_path / "run", timeout_s=180)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "fused" / "model.safetensors").is_file()
    assert "Warning" not in done.stderr + (tmp_path / "run" / "log.txt").read_text()
