"""Run folders that are read, refused, labelled, and stand for stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.run_folders import done, trained, write_run, write_stages_run

from plugin.base.errors import JobError, Problem
from plugin.comparison.runs import axis_of, read_run, read_runs
from plugin.run.events import ProgressFile
from plugin.run.folder import RunFolder, to_json


def problems(*names: object) -> list[str]:
    with pytest.raises(JobError) as refused:
        read_runs([str(name) for name in names])
    assert refused.value.code == 2
    return [str(problem) for problem in refused.value.problems]


def test_labels_are_folder_names_made_unique(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("x/a", "y/a", "y/b")]
    assert [run.label for run in read_runs([str(one) for one in folders])] == ["x/a", "y/a", "b"]


def test_every_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good")
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (good / "fused").mkdir()
    found = problems(
        good,
        good,
        tmp_path / "none",
        tmp_path / "file",
        tmp_path,
        good / "fused",
        tmp_path / "broken",
    )
    assert len(found) == 6
    for text, words in zip(
        found,
        (
            "none, which is missing",
            "file, which is a file",
            "holds no run.json. It holds runs: broken, good.",
            f"holds no run.json. Its run is {good}.",
            f"{good} twice",
            "readable run.json",
        ),
        strict=True,
    ):
        assert text.startswith("runs: ")
        assert words in text


def test_a_run_of_stages_stands_for_its_newest_stage(tmp_path: Path) -> None:
    stages = write_stages_run(tmp_path / "three", "short", "long", "decay", begun=2)
    other = write_run(tmp_path / "other")
    first, second = read_runs([str(stages), str(other)])
    assert (first.label, second.label) == ("three/2-long", "other")
    assert first.notes == ("the newest stage; earlier ones: 1-short",)
    assert read_run(str(stages)).label == "three/2-long"


def test_a_run_of_stages_alone_stands_for_each(tmp_path: Path) -> None:
    stages = write_stages_run(tmp_path / "three", "short", "long", "decay", begun=2)
    runs = read_runs([str(stages)])
    assert [(run.label, run.params["seed"]) for run in runs] == [("1-short", 1), ("2-long", 2)]


def test_stages_that_have_not_begun_are_refused(tmp_path: Path) -> None:
    stages = write_stages_run(tmp_path / "three", "short", begun=0)
    assert "none of whose stages has" in problems(stages)[0]
    (stages / "stages.json").write_text("[]")
    assert "readable stages.json" in problems(stages)[0]


def test_an_older_file_gets_the_defaults(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", seed=7)
    content = json.loads((folder / "run.json").read_text())
    del content["params"]["publish"], content["params"]["max_length"]
    (folder / "run.json").write_text(json.dumps(content))
    params = read_run(str(folder)).params
    assert (params["max_length"], params["seed"]) == (1024, 7)
    assert "publish" in params


def test_a_run_that_holds_its_lock_is_running(tmp_path: Path) -> None:
    """The lock names another process: its own holder does not count."""
    folder = write_run(tmp_path / "a", unfinished=True)
    assert read_run(str(folder)).status == "unfinished"
    progress = ProgressFile(phase="train", step=12, steps=30, percent=40.0, heartbeat="now")
    (folder / "progress.json").write_text(to_json(progress.content()))
    with RunFolder(folder).locked(0, print):
        (folder / ".lock").write_text("1\n")
        run = read_run(str(folder))
    assert (run.status, run.progress and run.progress.step) == ("running", 12)


def test_a_failed_run_keeps_its_error(tmp_path: Path) -> None:
    error = Problem("loss", "a finite loss", "nan")
    run = read_run(str(write_run(tmp_path / "a", result=done(outcome="failed", error=error))))
    assert run.status == "failed"
    assert run.file.result
    assert run.file.result.error == error


@pytest.mark.parametrize("name", ["metrics.jsonl", "progress.json", "evaluation.json"])
def test_a_file_that_cannot_be_read_is_noted(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "a", unfinished=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    run = read_run(str(folder))
    (note,) = run.notes
    assert note.startswith(f"{name} cannot be read: ")
    assert (name == "metrics.jsonl") == (not run.history.columns)


@pytest.mark.parametrize("content", ["{", "[]", '{"results": 3}'])
def test_an_evaluation_of_another_form_is_noted(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "evaluation.json").write_text(content)
    run = read_run(str(folder))
    assert run.evaluation == {}
    assert run.notes[0].startswith("evaluation.json cannot be read: ")


def test_the_axis_counts_tokens_where_a_run_does(tmp_path: Path) -> None:
    steps = write_run(tmp_path / "a")
    tokens = write_run(tmp_path / "b", train_tokens=900, training_stage="pretrain")
    runs = read_runs([str(steps), str(tokens)])
    assert axis_of(runs[:1]) == "step"
    assert axis_of(runs) == "tokens"
    line = trained(10, 4.0)
    del line["tokens"]  # a version that did not log them
    old = read_run(str(write_run(tmp_path / "old", [line])))
    assert axis_of([*runs, old]) == "step"


def test_a_record_of_another_program_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "run.json").write_text('{"params": [1]}')
    assert "params" in problems(folder)[0]
