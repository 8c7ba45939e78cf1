"""Rows of results: what stands for a run, and the loss of each against the first's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from helpers.run_folders import LINES, done, evaluated, trained, write_run

from plugin.base.errors import Problem
from plugin.comparison.parameters import comparability, sampler_differences
from plugin.comparison.results import ResultRow, results
from plugin.comparison.runs import Run, read_runs
from plugin.comparison.side_by_side import side_by_side
from plugin.run.events import ProgressFile
from plugin.run.folder import to_json
from plugin.run.outcome import PublishedWeights


def rows_of(*folders: Path) -> dict[str, ResultRow]:
    runs = read_runs([str(folder) for folder in folders])
    return {row.name: row for row in results(runs, comparability(runs))}


def test_a_finished_run_has_every_figure(tmp_path: Path) -> None:
    lines = (*LINES, evaluated(20, 2.0, 0.2), evaluated(30, 2.5))
    rows = rows_of(write_run(tmp_path / "a", sorted(lines, key=lambda line: line["step"])))
    assert {name: row.text("a") for name, row in rows.items()} == {
        "status": "done",
        "steps": "30",
        "tokens": "900",
        "loss": "2.0000",
        "eval_loss_first": "5.0000 ± 0.5000",
        "eval_loss_last": "2.5000 ± 0.1000",
        "eval_loss_best": "2.0000 ± 0.2000",
        "eval_loss_published": "2.5000 ± 0.1000",
        "seconds": "1 min 15 s",
        "training_seconds": "10.0 s",
        "tokens_per_s": "90",
        "peak_bytes": "2.50 GB",
        "max_logit_difference": "0",
    }
    assert rows["eval_loss_best"].as_json() == {"a": {"value": 2.0, "ci95": 0.2, "step": 20}}
    assert rows["steps"].as_json() == {"a": 30}


def test_published_weights_have_the_loss_of_their_step(tmp_path: Path) -> None:
    best = PublishedWeights(
        weights="best", checkpoints=["checkpoint-20"], eval_loss=2.0, eval_loss_last=2.5
    )
    lines = [evaluated(20, 2.0, 0.2), evaluated(30, 2.5)]
    rows = rows_of(write_run(tmp_path / "a", lines, done(published=best)))
    assert rows["eval_loss_published"].as_json()["a"] == {"value": 2.0, "ci95": 0.2, "step": 20}


def test_a_run_without_an_evaluation_has_no_published_loss(tmp_path: Path) -> None:
    last = PublishedWeights(weights="last", checkpoints=[], eval_loss=None, eval_loss_last=None)
    rows = rows_of(
        write_run(tmp_path / "a", [], done(published=last)),
        write_run(tmp_path / "b", LINES, done()),
    )
    assert rows["eval_loss_published"].text("a") == ""
    assert rows["eval_loss_published"].text("b")


def test_the_difference_adds_independent_intervals(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", [evaluated(10, 3.0, 0.3)])
    other = write_run(tmp_path / "b", [evaluated(10, 2.5, 0.4)])
    row = rows_of(one, other)["eval_loss_difference"]
    assert row.as_json() == {"b": {"value": -0.5, "ci95": 0.5}}
    assert (row.text("a"), row.text("b")) == ("", "-0.5000 ± 0.5000")


def test_losses_that_do_not_compare_have_no_difference(tmp_path: Path) -> None:
    folders = write_run(tmp_path / "a"), write_run(tmp_path / "b", data="other")
    assert "eval_loss_difference" not in rows_of(*folders)


def test_a_run_that_still_trains_shows_its_standing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [trained(10, 4.0)], unfinished=True)
    progress = ProgressFile(phase="train", step=12, steps=30, percent=40.0, heartbeat="now")
    (folder / "progress.json").write_text(to_json(progress.content()))
    rows = rows_of(folder)
    assert {name: row.text("a") for name, row in rows.items()} == {
        "status": "unfinished",
        "steps": "12",
        "steps_planned": "30",
        "tokens": "300",
        "loss": "4.0000",
    }


def test_a_failed_run_shows_its_error_and_nan(tmp_path: Path) -> None:
    error = Problem("loss", "a finite loss", "nan at step 20", code=6)
    ended = done(outcome="failed", error=error, steps=None, throughput=None, fuse=None)
    rows = rows_of(write_run(tmp_path / "a", [trained(10, 4.0), trained(20, math.nan)], ended))
    assert rows["error"].text("a") == "loss: expected a finite loss, got nan at step 20"
    assert rows["loss"].text("a") == "nan"
    assert "eval_loss_last" not in rows


def test_tokens_of_an_unlogged_end_come_from_the_speed(tmp_path: Path) -> None:
    rows = rows_of(write_run(tmp_path / "a", [trained(20, 3.0)], done(steps=23)))
    assert rows["tokens"].as_json() == {"a": 900.0}  # 90 tokens/s for 10 s


def scored(folder: Path, results: Any, **more: Any) -> Path:
    (folder / "evaluation.json").write_text(json.dumps({"results": results, **more}))
    return folder


def test_tasks_of_evaluate_are_rows_where_they_exist(tmp_path: Path) -> None:
    one = scored(
        write_run(tmp_path / "a"), {"gsm8k": {"exact": {"value": 0.25, "stderr": 0.05}}}, nfe=640
    )
    rows = rows_of(one, write_run(tmp_path / "b"))
    assert rows["gsm8k: exact"].text("a") == "0.2500 ± 0.0980"  # 1.96 standard errors
    assert rows["gsm8k: exact"].text("b") == ""
    assert rows["gsm8k: exact"].as_json() == {"a": {"value": 0.25, "stderr": 0.05}}
    assert rows["nfe"].as_json() == {"a": 640}


def test_tasks_show_the_interval_of_evaluate_itself(tmp_path: Path) -> None:
    none_right = {"value": 0.0, "stderr": 0.0, "ci95": [0.0, 0.0876], "n": 40}
    surprise = {"value": 183.9, "stderr": 97.7, "ci95": [64.9, 521.3]}
    odd = {"value": 1.0, "stderr": None, "ci95": ["low", 2]}
    found = {"t": {"exact": none_right, "perplexity": surprise, "odd": odd}}
    folder = scored(write_run(tmp_path / "a"), found)
    rows = rows_of(folder)
    assert rows["t: exact"].text("a") == "0.0000 (0.0000 to 0.0876)"
    assert rows["t: exact"].as_json()["a"]["interval"] == [0.0, 0.0876]
    assert rows["t: perplexity"].text("a") == "183.9000 (64.9000 to 521.3000)"
    assert rows["t: odd"].text("a") == "1.0000"
    notes = side_by_side(read_runs([str(folder)])).notes
    assert "(low to high) is the 95 % interval of evaluate, over rows or draws" in notes


def test_figures_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    ended = done(seconds=math.nan, eval_loss=math.inf)
    rows = rows_of(write_run(tmp_path / "a", [], ended))
    assert (rows["seconds"].text("a"), rows["eval_loss_last"].text("a")) == ("nan", "inf")


def test_other_sampler_settings_of_tasks_are_noted(tmp_path: Path) -> None:
    folders = [
        scored(write_run(tmp_path / name), {"t": {}}, sampler={"steps": steps, "seed": 1})
        for name, steps in (("a", 4), ("b", 8))
    ]
    runs = read_runs([str(one) for one in (*folders, write_run(tmp_path / "c"))])
    assert sampler_differences(runs) == ["t: scored with another steps: a 4, b 8"]


def test_sampler_settings_compare_task_by_task(tmp_path: Path) -> None:
    """A task that one run alone has was scored differently from nothing."""
    asked = {"a": {"t": 4, "u": 4, "v": 1}, "b": {"t": 8, "u": 4}}
    folders = [
        scored(
            write_run(tmp_path / name),
            {task: {} for task in tasks},
            sampler={"steps": 16},
            tasks={task: {"sampler": {"steps": steps}} for task, steps in tasks.items()},
        )
        for name, tasks in asked.items()
    ]
    runs = read_runs([str(one) for one in folders])
    assert sampler_differences(runs) == ["t: scored with another steps: a 4, b 8"]
    odd = scored(write_run(tmp_path / "c"), {"t": {}}, sampler=3, tasks={"t": []})
    assert sampler_differences([*runs[:1], *read_runs([str(odd)])]) == []


def test_figures_of_evaluate_without_a_value_are_left_out(tmp_path: Path) -> None:
    odd = {"t": {"alias": "x", "m": {"value": None}, "n": 3, "k": {"value": 1}}, "u": None}
    rows = rows_of(scored(write_run(tmp_path / "a"), odd, nfe="many"))
    assert [name for name in rows if ": " in name] == ["t: k"]
    assert "nfe" not in rows


def test_results_take_runs_of_any_kind() -> None:
    assert results(list[Run](), None) == []
