"""Runs with objective mlm: resumed as unbroken, published with its facts, sampled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from faults.compare import differences
from faults.forks import Forks
from helpers.support import run_main, write_rows


def test_resumed_mlm_run_equals_the_unbroken_one(
    forks: Forks, tiny_config: Path, tmp_path: Path
) -> None:
    rows = [{"text": " ".join(f"{n} and {n + k}." for k in range(n % 5 + 1))} for n in range(60)]
    texts = write_rows(tmp_path / "texts.jsonl", rows)
    job = ("--model_config", tiny_config, "--dataset_name", texts, "--training_stage", "pretrain")
    job += ("--objective", "mlm", "--mlm_replace", "bert", "--mask_rate", "0.25")
    job += ("--max_length", 32, "--learning_rate", "3e-3", "--batch_size", 4)
    job += (
        "--train_steps",
        30,
        "--save_steps",
        15,
        "--save_total_limit",
        9,
        "--train_device",
        "cpu",
    )
    whole = forks.run(tmp_path / "whole", *job)
    assert whole.code == 0, whole.err
    again = shutil.copytree(whole.folder, tmp_path / "again")
    resumed = forks.run(again, *job, "--resume", again / "checkpoint-15")
    assert resumed.code == 0, resumed.err
    assert differences(resumed, whole) == []
    assert whole.losses()[-1] < 0.8 * whole.losses()[0]

    facts = json.loads((whole.folder / "fused" / "diffusion.json").read_text())
    assert (facts["objective"], facts["mask_rate"], facts["mlm_replace"]) == ("mlm", 0.25, "bert")
    assert "masked language modelling" in (whole.folder / "fused" / "README.md").read_text()
    words = ("--max_new_tokens", 8, "--json", "--prompt", "3 and")
    answer = run_main("chat", whole.folder, *words)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["steps"] > 0
