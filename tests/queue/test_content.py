"""Contents of job files: a round trip through YAML, absolute paths, run folders, stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.config.parse import parse
from plugin.queue.content import (
    as_yaml,
    check_values,
    default_name,
    full_values,
    read_job_file,
    typed_over,
)

JOB: dict[str, Any] = {"dataset_name": "d.jsonl", "model_name": "m"}


@pytest.mark.parametrize(
    "more",
    [
        {"learning_rate": 1e-5, "lora": True, "batch_size": 3, "warmup_ratio": 0.1},
        {"learning_rate": "1e-5", "lora": "yes", "gpu_ids": "0"},
        {"output_template": "a: b # c\n  {{response}}\n'\"é\u2028"},
        {"output_template": "---\n- x", "model_revision": "007"},
        {"init_from": None, "run_dir": ""},
        {"report_to": "none", "max_steps": 7, "adapter_name": "x"},
    ],
)
def test_values_come_back_from_their_file_unchanged(tmp_path: Path, more: dict[str, Any]) -> None:
    values = {**JOB, **{name: value for name, value in more.items() if name != "model_revision"}}
    path = tmp_path / "job.yaml"
    path.write_text(as_yaml(values), encoding="utf-8")
    assert read_job_file(path).stages == (parse(values).params,)


def test_the_same_list_twice_is_written_without_an_alias() -> None:
    pairs = [[0, 4]]
    assert "&" not in as_yaml({"a": pairs, "b": pairs})


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m", "d.jsonl", "previous"):
        (tmp_path / name).touch()
    values = {"model_name_or_path": "m", "dataset_name": "d.jsonl", "run_dir": "r"}
    assert full_values(values | {"resume": "true"}, tmp_path) == {
        "model_name_or_path": str(tmp_path / "m"),
        "dataset_name": str(tmp_path / "d.jsonl"),
        "run_dir": str(tmp_path / "r"),
        "resume": "true",
    }
    hub = {"model_name": "owner/model", "init_from": None}
    assert full_values(hub, tmp_path) == hub
    stages = {"stages": [{"config": "s.yaml"}, {"model_name": "previous", "init_from": None}]}
    one = {"config": str(tmp_path / "s.yaml")}
    assert full_values(stages, tmp_path) == {"stages": [one, stages["stages"][1]]}


@pytest.mark.parametrize(
    ("more", "run_dir", "given"),
    [
        ({}, None, False),
        ({"resume": "false"}, None, False),
        ({"run_dir": "/r"}, "/r", True),
        ({"output_dir": "/r", "resume": "yes"}, "/r", True),
        ({"resume": "/r/x/checkpoint-12"}, "/r/x", True),
        ({"resume": "/r/x"}, "/r/x", True),
        ({"run_dir": "/r/checkpoint-1"}, "/r/checkpoint-1", True),
    ],
)
def test_the_run_folder_that_a_file_names(
    more: dict[str, str], run_dir: str | None, given: bool
) -> None:
    job = check_values({**JOB, **more}, beside=Path())
    assert (job.run_dir, job.given_folder) == (Path(run_dir) if run_dir else None, given)


def test_a_file_of_stages_is_all_its_stages(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("batch_size: 3\n")
    values = {**JOB, "stages": [{"name": "a", "config": "s.yaml"}, {"name": "b"}]}
    assert [one.batch_size for one in check_values(values, beside=tmp_path).stages] == [3, 4]
    whole = typed_over(values, {"batch_size": "2", "run_dir": "r"}, tmp_path)
    assert whole["run_dir"] == "r"
    assert [one.batch_size for one in check_values(whole, beside=Path()).stages] == [2, 2]
    assert typed_over(JOB, {"batch_size": "2"}, tmp_path) == {**JOB, "batch_size": "2"}


def test_every_problem_of_a_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model_name: m\nbatch_size: no\nlearnin_rate: 1\n")
    for _ in range(2):  # the second time from memory
        with pytest.raises(JobError) as refused:
            read_job_file(path)
        fields = {problem.field for problem in refused.value.problems}
        assert fields == {"batch_size", "learnin_rate", "dataset_name"}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for size in (3, 4):
        path.write_text(as_yaml({**JOB, "batch_size": size, "seed": "1" * size}))
        assert read_job_file(path).stages[0].batch_size == size


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="job file"):
        read_job_file(tmp_path / "job.yaml")


def test_the_name_of_a_job_is_that_of_its_adapter() -> None:
    assert default_name(JOB) == "adaptor"
    assert default_name({"adapter_name": "mine"}) == "mine"
