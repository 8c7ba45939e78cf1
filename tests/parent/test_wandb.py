"""W&B: the real library, offline; an unreachable service costs one warning and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.support import patience, processes_naming, run_main

from plugin.config.params import Params
from plugin.parent.wandb import END_S, key_problem

KEY = "0123456789abcdef" * 2 + "01234567"
ASKED = Params(dataset_name="d", log_to_wandb=True)


@pytest.fixture(scope="module")
def short(tiny_bert: Path, pairs_file: Path) -> list[Any]:
    job = [
        "train",
        "--model_name",
        tiny_bert,
        "--dataset_name",
        pairs_file,
        "--train_device",
        "cpu",
        "--max_length",
        64,
    ]
    return [
        *job,
        "--train_steps",
        3,
        "--logging_steps",
        1,
        "--fuse_model",
        "false",
        "--log_to_wandb",
        "true",
    ]


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, True),
        ({"WANDB_API_KEY": KEY}, False),
        ({"WANDB_MODE": "offline"}, False),
        ({"WANDB_MODE": "online"}, True),
    ],
)
def test_a_key_is_needed_unless_offline(
    tmp_path: Path, environ: dict[str, str], wanted: bool
) -> None:
    environ = {"HOME": str(tmp_path), **environ}
    assert bool(key_problem(ASKED, environ)) is wanted
    assert key_problem(Params(dataset_name="d"), environ) is None


def test_a_key_in_netrc_counts(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert key_problem(ASKED, {"HOME": str(tmp_path)}) is None


@pytest.mark.end_to_end
def test_offline_the_real_library_writes_the_run(tmp_path: Path, short: list[Any]) -> None:
    env = {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
    done = run_main(
        *short, "--wandb_project", "mine", "--run_dir", tmp_path / "run", env=env, timeout_s=120
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for word in (b"mine", b"eval/loss", b"learning_rate", b"adaptor-run"):
        assert word in content
    for word in (b"eval/documents", b"eval/loss_ci95_t"):  # of metrics.jsonl, no curves
        assert word not in content
    assert len(json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]) == 8
    everything = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [text for text in everything if KEY.encode() in text]


@pytest.mark.end_to_end
def test_a_service_out_of_reach_is_one_warning(tmp_path: Path, short: list[Any]) -> None:
    env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    done = run_main(*short, "--run_dir", tmp_path / "run", env=env, timeout_s=120)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: log_to_wandb: not everything arrived there")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]["outcome"] == "done"
    end = time.monotonic() + patience(END_S)
    while processes_naming(str(tmp_path / "run")):
        assert time.monotonic() < end, "something was left running"


@pytest.mark.end_to_end
def test_without_a_key_check_refuses_and_train_warns(tmp_path: Path, short: list[Any]) -> None:
    env = {"HOME": str(tmp_path)}
    checked = run_main("check", *short[1:], env=env, timeout_s=120)
    assert checked.returncode == 2
    assert (
        "error[2]: log_to_wandb: expected a W&B key in the environment or in netrc, got none."
        in checked.stderr
    )
