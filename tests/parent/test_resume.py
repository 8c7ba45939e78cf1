"""Resuming: accepted and refused folders, checkpoints, parameters and data.

A refusal leaves every file unchanged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from faults.compare import tensors_of
from faults.forks import Forks
from helpers.scenes import Scene
from helpers.support import ERROR, MAIN, pairs, read_lines, run_main, write_rows

from plugin.base.digests import why_broken
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.parent.resume import Start, find_start, state_problems
from plugin.run.asked import config_values
from plugin.run.folder import RunFolder


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running


@pytest.fixture(scope="module")
def job(tiny_config: Path, pairs_file: Path) -> tuple[object, ...]:
    model = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--fuse_model",
        "false",
    )
    return (
        *model,
        "--train_steps",
        6,
        "--save_steps",
        2,
        "--save_total_limit",
        9,
        "--eval_steps",
        3,
        "--batch_size",
        4,
    )


@pytest.fixture(scope="module")
def finished(
    forks: Forks, job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    done = forks.run(tmp_path_factory.mktemp("finished") / "run", *job)
    assert done.code == 0, done.err
    return done.folder


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """Copy the folder of a finished run of six steps with checkpoints 2, 4 and 6."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> Mapping[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def errors(scene: Scene) -> dict[str, str]:
    """Return {field: line} of the errors."""
    found = [(ERROR.match(line), line) for line in scene.err.splitlines()]
    return {match[2]: line for match, line in found if match}


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# --- parameters


def test_every_forbidden_change_is_named_and_nothing_touched(
    forks: Forks, job: Any, run_copy: Path
) -> None:
    before = contents(run_copy)
    changed = (
        "--learning_rate",
        "1e-4",
        "--seed",
        7,
        "--max_length",
        32,
        "--batch_size",
        8,
        "--train_steps",
        5,
    )
    refused = forks.run(run_copy, *job, *changed, "--resume", "true")
    assert refused.code == 2
    assert errors(refused).keys() == {
        "learning_rate",
        "seed",
        "max_length",
        "batch_size",
        "train_steps",
    }
    assert (
        "expected 2e-05, as this run was trained so far, got 0.0001"
        in errors(refused)["learning_rate"]
    )
    assert (
        "expected 4 documents a step, as before, got 8 x 1 x 1 processes = 8"
        in errors(refused)["batch_size"]
    )
    assert "expected at least the 6 steps already done, got 5" in errors(refused)["train_steps"]
    after = contents(run_copy)
    assert {name: content for name, content in after.items() if name != ".lock"} == {
        name: content for name, content in before.items() if name != ".lock"
    }


def test_allowed_changes_are_logged_one_line_each(forks: Forks, job: Any, run_copy: Path) -> None:
    changed = (
        "--train_steps",
        8,
        "--logging_steps",
        2,
        "--batch_size",
        2,
        "--gradient_accumulation_steps",
        2,
    )
    resumed = forks.run(run_copy, *job, *changed, "--resume", "true")
    assert resumed.code == 0, resumed.err
    told = [line for line in resumed.err.splitlines() if " from here, " in line]
    assert sorted(told) == [
        "resume: batch_size is 2 from here, 4 before",
        "resume: gradient_accumulation_steps is 2 from here, 1 before",
        "resume: logging_steps is 2 from here, 10 before",
        "resume: train_steps is 8 from here, 6 before",
    ]
    assert resumed.result["steps"] == 8
    assert resumed.json("run.json")["params"]["train_steps"] == 8


def test_other_data_is_refused_by_content(forks: Forks, job: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "own.jsonl", pairs())
    args = (*job, "--dataset_name", data)
    assert forks.run(tmp_path / "run", *args).code == 0
    write_rows(data, pairs()[:-1])
    refused = forks.run(tmp_path / "run", *args, "--resume", "true")
    assert refused.code == 2
    assert (
        "expected the data this run was trained on so far, got other content"
        in errors(refused)["dataset_name"]
    )


def test_check_says_what_train_would_say(job: Any, run_copy: Path) -> None:
    refused = run_main(
        "check", *job, "--run_dir", run_copy, "--resume", "true", "--json", "--seed", 7
    )
    assert refused.returncode == 2
    assert [problem["field"] for problem in json.loads(refused.stdout)["problems"]] == ["seed"]


# --- folders


def test_true_needs_a_run_dir(job: Any) -> None:
    refused = run_main("train", *job, "--resume", "true", cwd=MAIN.parent)
    assert refused.returncode == 2
    assert "error[2]: resume: expected a run_dir to resume, got true without one." in refused.stderr


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_was(
    forks: Forks, job: Any, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    (precious / "checkpoint-500").mkdir(parents=True)
    (precious / "checkpoint-500" / "model.safetensors").write_bytes(b"weights")
    (precious / "thesis.txt").write_text("years of work")
    (precious / ".notes.part").write_text("half a note")
    before = contents(precious)
    for asked in (
        ("--resume", precious),
        ("--resume", precious / "checkpoint-500"),
        ("--resume", "true"),
    ):
        refused = forks.run(precious, *job, *asked)
        assert refused.code == 2, refused.err
        assert "expected the folder of a run, with its run.json" in errors(refused)["resume"]
    assert contents(precious) == before


def test_a_checkpoint_without_our_digests_is_refused(
    forks: Forks, job: Any, run_copy: Path
) -> None:
    for path in run_copy.glob("checkpoint-*"):
        (path / "digests.json").unlink()
    refused = forks.run(run_copy, *job, "--resume", "true")
    assert refused.code == 2
    assert (
        "resume: checkpoint-6 is skipped: it has no digests.json, so this program did not finish it"
        in refused.err
    )
    assert "expected an intact checkpoint that this program wrote" in errors(refused)["resume"]
    assert [path.name for path in RunFolder(run_copy).checkpoints()] == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]


def test_a_fused_model_without_checkpoints_is_not_cleared(
    forks: Forks, job: Any, tmp_path: Path
) -> None:
    args = (*job, "--fuse_model", "true")
    done = forks.run(tmp_path / "run", *args)
    assert done.code == 0, done.err
    for path in done.folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    kept = tensors_of(done.folder / "fused")
    refused = forks.run(done.folder, *args, "--resume", "true")
    assert refused.code == 2
    assert "expected a checkpoint to resume from" in errors(refused)["resume"]
    assert tensors_of(done.folder / "fused") == kept != {}


def test_a_run_without_a_checkpoint_starts_anew(forks: Forks, job: Any, tmp_path: Path) -> None:
    died = forks.run(tmp_path / "run", *job, fault="step:kill:2:0")
    assert died.code == 8
    (died.folder / "my notes.txt").write_text("mine")
    again = forks.run(died.folder, *job, "--resume", "true")
    assert again.code == 0, again.err
    told = [line for line in again.err.splitlines() if line.startswith("resume:")]
    assert told == [f"resume: {died.folder} holds no checkpoint yet; the run starts at step 0"]
    assert [line["step"] for line in again.trace() if "eval/loss" in line] == [0, 3, 6]
    assert (died.folder / "my notes.txt").read_text() == "mine"


def test_a_new_folder_may_be_named_with_resume_on(forks: Forks, job: Any, tmp_path: Path) -> None:
    """A job script that is started repeatedly does so."""
    done = forks.run(tmp_path / "run", *job, "--resume", "true")
    assert done.code == 0, done.err
    assert "holds no checkpoint yet; the run starts at step 0" in done.err


# --- checkpoints


def test_an_older_checkpoint_renames_the_newer_ones(forks: Forks, job: Any, run_copy: Path) -> None:
    damage(run_copy / "checkpoint-4" / "optimizer.safetensors")
    resumed = forks.run(run_copy, *job, "--resume", run_copy / "checkpoint-2")
    assert resumed.code == 0, resumed.err
    told = [line for line in resumed.err.splitlines() if line.startswith("resume:")]
    assert "resume: checkpoint-6 is now replaced-checkpoint-6" in told
    assert "resume: checkpoint-4 is broken; removed" in told
    names = {"checkpoint-2", "checkpoint-4", "checkpoint-6", "replaced-checkpoint-6"}
    assert {path.name for path in run_copy.glob("*checkpoint-*")} == names
    assert not why_broken(run_copy / "replaced-checkpoint-6")
    assert tensors_of(run_copy / "replaced-checkpoint-6") == tensors_of(run_copy / "checkpoint-6")


def test_the_newest_intact_checkpoint_is_used(
    forks: Forks, job: Any, run_copy: Path, finished: Path
) -> None:
    damage(run_copy / "checkpoint-6" / "model.safetensors")
    shutil.copytree(run_copy / "checkpoint-2", run_copy / ".checkpoint-8.part")
    (run_copy / ".run.json.77.part").write_text("{")
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    with (run_copy / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-')
    resumed = forks.run(run_copy, *job, "--resume", "true")
    assert resumed.code == 0, resumed.err
    assert (
        "resume: checkpoint-6 is skipped: model.safetensors is not what was written" in resumed.err
    )
    assert "resume: resuming from step 4" in resumed.err
    for part in (".checkpoint-8.part", ".run.json.77.part"):
        assert f"resume: {part} was only half written; removed" in resumed.err
        assert not (run_copy / part).exists()
    assert tensors_of(run_copy / "checkpoint-6") == tensors_of(finished / "checkpoint-6")
    assert resumed.trace() == Scene(finished, 0, "", "").trace()
    assert read_lines(run_copy / "events.jsonl")[-1]["type"] == "finished"


def test_when_every_checkpoint_is_broken_nothing_is_removed(
    forks: Forks, job: Any, run_copy: Path
) -> None:
    for path in run_copy.glob("checkpoint-*"):
        damage(path / "model.safetensors")
    before = contents(run_copy)
    refused = forks.run(run_copy, *job, "--resume", "true")
    assert refused.code == 2
    assert refused.err.count("is skipped: model.safetensors is not what was written") == 3
    assert errors(refused).keys() == {"resume"}
    assert contents(run_copy).keys() == before.keys()


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"model.safetensors": 3}', "\xff", '{"../run.json": "00"}', '{".": "00"}'],
)
def test_digests_of_any_content_are_read_without_an_error(content: str, run_copy: Path) -> None:
    (run_copy / "checkpoint-6" / "digests.json").write_text(content, encoding="latin-1")
    (run_copy / "checkpoint-6" / "state.json").unlink()
    told: list[str] = []
    start = find_start(RunFolder(run_copy), None, told.append)
    assert start is not None
    assert start.step == 4
    assert told[0].startswith("resume: checkpoint-6 is skipped: ")


# --- what is typed


@pytest.mark.parametrize("value", [True, "true", "True", "on", "yes", "1"])
def test_yes_in_any_spelling_resumes(value: object) -> None:
    assert (
        parse(
            {"model_name": "x", "dataset_name": "y", "run_dir": "z", "resume": value}
        ).params.resume
        == "true"
    )


@pytest.mark.parametrize("value", [False, "false", "False", "off", "no", "0", "", None])
def test_no_in_any_spelling_does_not_resume(value: object) -> None:
    assert parse({"model_name": "x", "dataset_name": "y", "resume": value}).params.resume == "false"


@pytest.mark.parametrize(
    ("text", "value"),
    [("resume: true", "true"), ("resume: no", "false"), ("resume: runs/on", "runs/on")],
)
def test_a_file_may_say_it_in_yaml(text: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"model_name: x\ndataset_name: y\n{text}\n")
    assert parse(config_values(str(tmp_path / "job.yaml"))).params.resume == value


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({}, False),
        ({"optim": "adamw_8bit"}, True),
        ({"lora": True, "lora_dropout": 0.1}, True),
    ],
)
def test_draws_of_an_earlier_version_are_refused(
    values: dict[str, Any], refused: bool, tmp_path: Path
) -> None:
    """Versions before 0.5 seeded dropout and rounding with Python's hash of a tuple."""
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    old = {"step": 2, "pass_": 0, "position": 8, "seed": 1, "step_size": 4}
    (checkpoint / "state.json").write_text(json.dumps(old), encoding="utf-8")
    params = Params.model_validate({"batch_size": 4, "train_steps": 4, **values})
    found = state_problems(Start(checkpoint, 2), params, 1)
    assert [problem.field for problem in found] == (["resume"] if refused else [])
