"""Agreement of `check` and `train`: they log the same choices for one job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from faults.forks import Forks
from helpers.support import try_out_here

from plugin.config.parse import parse

CHOICES = ("dtype: ", "attention: ", "parallel: ", "memory: ", "recompute: ", "compile: ")
JOBS = {
    "auto": {},
    "packed": {"packing": "on", "recompute": "full", "dtype": "bfloat16"},
    "two ranks": {"num_processes": 2, "parallel": "zero3", "tokens_per_batch": 128},
    "stream": {"streaming": True, "training_stage": "pretrain", "text_field": "response"},
}


def choices(lines: list[str]) -> list[str]:
    """Return the lines of choices, without the bytes that happen to be free."""
    return [re.sub(r"[\d.]+ GB are free", "", line) for line in lines if line.startswith(CHOICES)]


@pytest.mark.parametrize("values", JOBS.values(), ids=JOBS)
def test_check_and_train_log_the_same_choices(
    values: dict[str, Any], tiny_config: Path, pairs_file: Path, forks: Forks, tmp_path: Path
) -> None:
    job = {
        "model_config": str(tiny_config),
        "dataset_name": str(pairs_file),
        "max_length": 64,
        "train_steps": 1,
        "train_device": "cpu",
        "fuse_model": False,
        **values,
    }
    args = [text for name, value in job.items() for text in (f"--{name}", value)]
    ran = forks.run(tmp_path / "run", *args)
    assert ran.code == 0, ran.err
    params = parse(job).params
    answer = try_out_here(params, int(values.get("num_processes", 1)))
    logged = choices((ran.folder / "log.txt").read_text(encoding="utf-8").splitlines())
    assert choices(answer["notes"]) == logged
    assert len(logged) >= 4
