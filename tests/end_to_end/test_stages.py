"""Stages of one file: three toy stages, broken off, resumed, stopped, refused and checked."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.compare import tensors_of
from faults.forks import Forks
from helpers.scenes import LONGEST_S, Scene
from helpers.support import TINY_CONFIG, wait_until, write_rows
from safetensors.torch import load_file

from plugin import cli
from plugin.inference.model import find_model
from plugin.parent import check as parent_check
from plugin.run.stages_file import read_stages

WORDS = ("sky", "blue", "and", "grass", "green", "while", "old", "snow", "lies", "on", "roofs")
NAMES = ["1-pretrain", "2-extension", "3-decay"]
RESULTS = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write generated texts and a ModernBERT of 64 positions."""
    folder = tmp_path_factory.mktemp("stages")
    rng = random.Random(3)
    texts = [
        {"text": f"{' '.join(rng.choices(WORDS, k=max(1, int(rng.lognormvariate(2.5, 1)))))} {n}"}
        for n in range(300)
    ]
    write_rows(folder / "texts.jsonl", texts)
    config = TINY_CONFIG | {"max_position_embeddings": 64}
    (folder / "model.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def recipe(folder: Path) -> dict[str, Any]:
    """Return the three stages of a pretraining recipe, a few seconds long."""
    stable = {"learning_rate_schedule": "constant_with_warmup", "save_steps": 10}
    top = {
        "model_config": str(folder / "model.json"),
        "dataset_name": str(folder / "texts.jsonl"),
        "training_stage": "pretrain",
        "streaming": True,
        "train_device": "cpu",
        "max_length": 64,
        "batch_size": 2,
        "learning_rate": 3e-3,
        "logging_steps": 1,
    }
    stages = [
        {"name": "pretrain", "train_tokens": 5120, "gradient_accumulation_steps": 2, **stable}
        | {"batch_warmup_tokens": 1280},
        {"name": "extension", "max_length": 128, "rope_theta": 40_000, "train_steps": 60, **stable},
        {"name": "decay", "max_length": 128, "learning_rate_schedule": "one_minus_sqrt"}
        | {"train_steps": 12, "warmup_ratio": 0, "save_steps": 6},
    ]
    return top | {"stages": stages}


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(
    forks: Forks, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scene, Path]:
    root = tmp_path_factory.mktemp("unbroken")
    config = write(root / "job.yaml", recipe(folder))
    run = forks.run(root / "run", "--config", config, "--json")
    assert run.code == 0, run.err
    return run, config


def weights(run: Path) -> dict[str, bytes]:
    """Return weights and optimizer of each stage's last checkpoint."""
    found: dict[str, bytes] = {}
    for name in NAMES:
        last = max((run / name).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        parts = tensors_of(last)
        found |= {f"{name}/{last.name}/{part}": parts[part] for part in RESULTS}
    return found


def states(run: Path) -> list[str]:
    return [stage.state for stage in read_stages(run).stages]


def test_three_stages_are_three_runs(unbroken: tuple[Scene, Path]) -> None:
    run, _ = unbroken
    assert states(run.folder) == ["done", "done", "done"]
    printed = json.loads(run.out)
    assert (printed["outcome"], printed["run_dir"]) == ("done", str(run.folder))
    assert [stage["name"] for stage in printed["stages"]] == ["pretrain", "extension", "decay"]
    params = [json.loads((run.folder / name / "run.json").read_text())["params"] for name in NAMES]
    assert [one["seed"] for one in params] == [42, 43, 44]
    assert [one["model_config"] != "" for one in params] == [True, False, False]
    for one, before in zip(params[1:], NAMES, strict=False):
        last = max((run.folder / before).glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
        assert one["start_from"] == str(last), "the final checkpoint of the stage before"
    counts = [
        load_file(run.folder / name / f"checkpoint-{step}" / RESULTS[1])["0.step"].item()
        for name, step in zip(NAMES[1:], (60, 12), strict=True)
    ]
    first = len(losses(run.folder / NAMES[0]))
    assert counts == [first + 60, first + 72], "the optimizer is carried over"
    assert all(list((run.folder / name / "tb").glob("events.*")) for name in NAMES)


def losses(stage: Path) -> list[float]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_stages_train_on_in_a_longer_context(unbroken: tuple[Scene, Path]) -> None:
    run, _ = unbroken
    config = json.loads((run.folder / "fused" / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 40_000
    assert losses(run.folder / NAMES[2])[0] < losses(run.folder / NAMES[0])[0] - 0.5
    results = [json.loads((run.folder / name / "run.json").read_text())["result"] for name in NAMES]
    assert results[2]["eval_loss"] < results[0]["eval_loss"]
    assert results[2]["fuse"]["max_logit_difference"] < 1e-5


def test_result_of_the_last_stage_is_that_of_the_run(unbroken: tuple[Scene, Path]) -> None:
    run, _ = unbroken
    link = run.folder / "fused"
    assert link.readlink() == Path("3-decay/fused")
    assert find_model(str(run.folder)) == str(run.folder / "3-decay" / "fused")


def test_killed_second_stage_resumes_to_the_last_bit(
    forks: Forks, unbroken: tuple[Scene, Path], tmp_path: Path
) -> None:
    whole, config = unbroken
    begun = forks.start(tmp_path / "run", "--config", config)
    at = tmp_path / "run" / NAMES[1] / "checkpoint-10"
    wait_until(at.is_dir, "a checkpoint of the second stage", deadline_s=LONGEST_S)
    begun.kill(parent=True)
    begun.wait()
    assert not (tmp_path / "run" / NAMES[1] / "checkpoint-60").exists(), "it was killed too late"
    done = forks.run(tmp_path / "run", "--config", config, "--resume", "true")
    assert done.code == 0, done.err
    assert "stages[1]: pretrain is done" in done.err
    assert "resume: resuming from step" in done.err
    assert weights(done.folder) == weights(whole.folder)
    assert states(done.folder) == ["done"] * 3


@pytest.mark.parametrize("kept", [1, 2])
def test_kill_between_two_stages_loses_nothing(
    kept: int, forks: Forks, unbroken: tuple[Scene, Path], tmp_path: Path
) -> None:
    """stages.json still calls a stage running that its own run.json calls done."""
    whole, config = unbroken
    again = Path(shutil.copytree(whole.folder, tmp_path / "run", symlinks=True))
    (again / "fused").unlink()
    for name in NAMES[kept:]:
        shutil.rmtree(again / name)
    record = json.loads((again / "stages.json").read_text())
    record["stages"][kept - 1] |= {"state": "running", "result": None}
    (again / "stages.json").write_text(json.dumps(record))
    (again / NAMES[kept]).mkdir()
    (again / NAMES[kept] / ".lock").touch()
    done = forks.run(again, "--config", config, "--resume", "true")
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if line.endswith("is done")] == [
        f"stages[{number}]: {NAMES[number - 1][2:]} is done" for number in range(1, kept + 1)
    ]
    assert (again / "fused").is_dir()
    assert weights(again) == weights(whole.folder)


@pytest.mark.parametrize("where", ["run", "stage"])
def test_stop_ends_the_stage_and_the_run(
    where: str, forks: Forks, unbroken: tuple[Scene, Path], tmp_path: Path
) -> None:
    _, config = unbroken
    begun = forks.start(tmp_path / "run", "--config", config, "--json")
    at = tmp_path / "run" / NAMES[1] / "checkpoint-10"
    wait_until(at.is_dir, "a checkpoint of the second stage", deadline_s=LONGEST_S)
    (tmp_path / "run" / ("" if where == "run" else NAMES[1]) / "STOP").touch()
    run = begun.wait()
    assert run.code == 0, run.err
    assert states(run.folder) == ["done", "stopped", "waiting"]
    assert json.loads(run.out)["outcome"] == "stopped"
    assert not (run.folder / "STOP").exists()
    assert not (run.folder / NAMES[2]).exists()


def test_failed_stage_fails_the_run(forks: Forks, folder: Path, tmp_path: Path) -> None:
    """A data set whose texts all end up too short is found when the second stage reads it."""
    content = recipe(folder)
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    content["stages"][1]["dataset_name"] = str(tmp_path / "empty.jsonl")
    config = write(tmp_path / "job.yaml", content)
    run = forks.run(tmp_path / "run", "--config", config, "--json")
    assert run.code == 3
    assert states(run.folder) == ["done", "failed", "waiting"]
    printed = json.loads(run.out)
    assert (printed["outcome"], printed["code"]) == ("failed", 3)
    assert printed["error"]["field"] == "dataset_name"


@pytest.fixture
def call(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, list[str]]]:
    """Return call(command, content, words...) -> exit code, stdout, error lines."""
    from helpers.support import try_out_here

    monkeypatch.setattr(parent_check, "_try_out", try_out_here)

    def run(command: str, content: object, *words: object) -> tuple[int, str, list[str]]:
        config = write(tmp_path / "job.yaml", content)
        where = ("--run_dir", tmp_path / "run")
        code = cli.main([command, "--config", str(config), *map(str, (*where, *words))])
        out, err = capsys.readouterr()
        return code, out, [line for line in err.splitlines() if line.startswith("error[")]

    return run


def test_problems_of_all_stages_are_reported_before_the_first(
    call: Callable[..., tuple[int, str, list[str]]], folder: Path, tmp_path: Path
) -> None:
    content = recipe(folder)
    content["stages"][0]["batch_size"] = 0
    content["stages"][1] |= {"max_lenght": 9, "optim": "adamw_8bit"}
    content["stages"][2] |= {"dataset_name": str(tmp_path / "missing.jsonl"), "resume": "true"}
    content["learning_rate"] = "fast"
    code, _, lines = call("train", content)
    assert code == 2
    fields = [line.split(": ")[1] for line in lines]
    assert fields == [
        "learning_rate",
        "stages[1].batch_size",
        "stages[2].max_lenght",
        "stages[3].resume",
    ]
    for stage in content["stages"]:
        for name in ("batch_size", "max_lenght", "resume"):
            stage.pop(name, None)
    content["learning_rate"] = 1e-3
    code, _, lines = call("train", content)
    assert [line.split(": ")[1] for line in lines] == ["stages[2].optim", "stages[3].optim"]
    del content["stages"][1]["optim"]
    code, _, (line,) = call("train", content)
    assert (code, line.split(": ")[1]) == (3, "stages[3].dataset_name")
    assert not (tmp_path / "run").exists()


def test_check_tries_every_stage(
    call: Callable[..., tuple[int, str, list[str]]], folder: Path, tmp_path: Path
) -> None:
    code, out, lines = call("check", recipe(folder), "--json")
    assert (code, lines) == (0, [])
    answer = json.loads(out)
    assert answer["ok"]
    assert [stage["name"] for stage in answer["stages"]] == ["pretrain", "extension", "decay"]
    assert [stage["plan"]["steps"] for stage in answer["stages"]] == [25, 60, 12]
    assert not (tmp_path / "run").exists()
    code, out, _ = call("check", recipe(folder))
    assert [line for line in out.splitlines() if line.startswith("---")][
        2
    ] == "--- stages[3]: decay"


def test_check_names_what_a_later_stage_asks_of_the_model(
    call: Callable[..., tuple[int, str, list[str]]], folder: Path, tmp_path: Path
) -> None:
    """A later stage's model has the shape of the first one's: learned positions stay as many."""
    content = recipe(folder)
    config = json.loads((folder / "model.json").read_text())
    bert = {name: config[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    bert |= {"model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 2}
    (tmp_path / "bert.json").write_text(json.dumps(bert | {"max_position_embeddings": 64}))
    content["model_config"] = str(tmp_path / "bert.json")
    content["stages"][2]["rope_theta"] = 0
    code, _, lines = call("check", content)
    assert [line.split(": ")[1] for line in lines] == [
        "stages[2].rope_theta",
        "stages[3].max_length",
    ]
    assert code == 2


def test_finished_stage_may_not_change(
    call: Callable[..., tuple[int, str, list[str]]],
    unbroken: tuple[Scene, Path],
    folder: Path,
    tmp_path: Path,
) -> None:
    whole, _ = unbroken
    shutil.copytree(whole.folder, tmp_path / "run", symlinks=True)
    content = recipe(folder)
    assert call("train", content)[2][0].startswith("error[2]: run_dir: expected a new or empty")
    content["stages"][0]["learning_rate"] = 1e-4
    content["stages"][1]["train_steps"] = 80
    content["stages"][2]["name"] = "other"
    code, _, lines = call("train", content, "--resume", "true")
    fields = [line.split(": ")[1] for line in lines]
    assert code == 2
    assert fields == ["stages[1].learning_rate", "stages[2].train_steps", "stages[3].name"]
