"""Arguments of `evaluate`: every mistake is named together, before torch is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.commands.evaluate_arguments import evaluate_options


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a=b.jsonl"
    path.write_text("{}\n")
    return str(path)


def without_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_scorers_name_their_files(file: str) -> None:
    options = evaluate_options(["m", "--tasks", f"gsm8k={file}", f"loss={file}", "--cfg", "1"])
    assert [(task.scorer, task.file) for task in options.parsed] == [
        ("gsm8k", file),
        ("loss", file),
    ]
    assert options.overrides == {"cfg": 1.0}
    assert (options.draws, options.likelihood, options.limit) == (128, "monte_carlo", None)


def test_all_mistakes_are_reported_together(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_harness(monkeypatch)
    words = [f"gsm8={file}", "exact=none.jsonl", "none.yaml", "hellaswag", f"loss={file}"]
    with pytest.raises(JobError) as refused:
        evaluate_options(["m", "--tasks", *words, f"loss={file}", "--steps", "x", "--shots", "no"])
    lines = "\n".join(problem.line for problem in refused.value.problems)
    for part in (
        "steps: expected a whole number from 1 up, got x",
        f"tasks: expected a scorer, got gsm8={file}. Did you mean gsm8k?",
        "tasks: expected a file that exists, got none.jsonl",
        "tasks: expected a file that exists, got none.yaml",
        "Install it: python -m pip install lm-eval==0.4.13",
        "tasks: expected each task once",
        "shots: expected a file that exists, got no",
        "shots: expected --num_fewshot as well",
    ):
        assert part in lines


@pytest.mark.parametrize("option", ["--num_fewshot", "--shots"])
def test_shots_that_no_task_shows_are_refused(file: str, option: str) -> None:
    name, value = option.removeprefix("--"), file if option == "--shots" else "2"
    more = ["--num_fewshot", "2"] if option == "--shots" else []
    with pytest.raises(JobError, match=f"{name}: expected gsm8k"):
        evaluate_options(["m", "--tasks", f"exact={file}", option, value, *more])
    evaluate_options(["m", "--tasks", f"exact={file}", f"gsm8k={file}", option, value, *more])
    evaluate_options(["m", "--tasks", f"exact={file}", "--num_fewshot", "0"])


def test_scorer_without_its_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_harness(monkeypatch)
    with pytest.raises(JobError, match="tasks: expected exact=FILE, got exact"):
        evaluate_options(["m", "--tasks", "exact"])


@pytest.mark.parametrize(
    "words",
    [("--limit", "0"), ("--draws", "0"), ("--num_fewshot", "-1"), ("--likelihood", "elbo"), ()],
)
def test_wrong_values_are_refused(file: str, words: tuple[str, ...]) -> None:
    tasks = ["--tasks", f"exact={file}"] if words else []
    with pytest.raises(JobError) as refused:
        evaluate_options(["m", *tasks, *words])
    assert refused.value.problems[0].field == (words[0].lstrip("-") if words else "tasks")
