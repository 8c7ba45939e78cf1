"""Run folders as points of a fit: what is read, and which runs are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.planning.runs import differences, read_points, run_folders
from plugin.run.folder import RunFolder
from plugin.run.outcome import Result, Throughput
from plugin.run.run_file import RunFile

SPEED = Throughput(tokens_per_s=100.0, supervised_tokens_per_s=100.0, training_seconds=20.0)
DONE = Result(outcome="done", code=0, eval_loss=3.5, throughput=SPEED)


def write(
    folder: Path,
    result: Result | None = DONE,
    config: str = "fused/config.json",
    **params: Any,
) -> Path:
    folder.mkdir(parents=True)
    values: Mapping[str, Any] = {"training_method": "llada", "dataset_name": "d", **params}
    RunFolder(folder).write_run(RunFile(params=dict(values), result=result))
    if config:
        (folder / config).parent.mkdir(parents=True, exist_ok=True)
        (folder / config).write_text("{}")
    return folder


def test_a_run_is_read_as_a_point(tmp_path: Path) -> None:
    folder = write(tmp_path / "runs" / "a")
    asked: list[Path] = []
    (point,) = read_points(run_folders([tmp_path]), lambda path: asked.append(path) or 7)
    assert (point.method, point.parameters, point.tokens, point.loss) == ("llada", 7, 2000.0, 3.5)
    assert point.flops == 6 * 7 * 2000
    assert asked == [folder / "fused" / "config.json"]


def test_the_newest_checkpoint_has_the_configuration_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", config="checkpoint-9/config.json")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "config.json").touch()
    asked: list[Path] = []
    read_points([folder], lambda path: asked.append(path) or 7)
    assert asked == [folder / "checkpoint-10" / "config.json"]


def test_the_file_of_model_config_is_the_last_resort(tmp_path: Path) -> None:
    file = tmp_path / "shape.json"
    file.touch()
    folder = write(tmp_path / "a", config="", model_config=str(file))
    asked: list[Path] = []
    read_points([folder], lambda path: asked.append(path) or 7)
    assert asked == [file]


def test_every_run_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", result=None)
    write(tmp_path / "b", result=Result(outcome="stopped"))
    write(tmp_path / "c", result=DONE.model_copy(update={"eval_loss": None}))
    write(tmp_path / "d", config="")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "run.json").write_text("{")
    write(tmp_path / "f")
    with pytest.raises(JobError) as refused:
        read_points(run_folders([tmp_path]), lambda path: 7)
    texts = [str(problem) for problem in refused.value.problems]
    assert len(texts) == 5
    for text, words in zip(
        texts,
        ("unfinished", "is stopped", "with an evaluation", "config.json", "readable run.json"),
        strict=True,
    ):
        assert text.startswith("fit: ")
        assert words in text


def test_folders_without_runs_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(JobError) as refused:
        run_folders([tmp_path, tmp_path / "none"])
    assert [problem.got for problem in refused.value.problems] == [
        f"{tmp_path}, which holds none",
        f"{tmp_path / 'none'}, which is no folder",
    ]


def test_runs_on_different_data_are_noted(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, dataset_name=name) for name in ("a", "b")]
    (note,) = differences(folders)
    assert 'dataset_name ("a", "b")' in note
    assert differences(folders[:1]) == []
