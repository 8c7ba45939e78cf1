"""Summaries of runs: what each file says, folders that are none, changes, and the time it takes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from helpers.run_folders import done, write_run, write_stages_run
from helpers.support import patience

from plugin.base.errors import Problem
from plugin.comparison.summary import RunSummary, Summaries, folders_of_runs, renewed
from plugin.run.lock import locked

PROGRESS = {
    "phase": "train",
    "step": 10,
    "steps": 30,
    "percent": 33.3,
    "eta_seconds": 12.0,
    "loss": 2.2,
    "tokens_per_s": 99.0,
    "heartbeat": "2026-11-29T00:00:00+00:00",
}


def summaries(root: Path) -> dict[str, RunSummary]:
    return {run.name: run for run in Summaries(root).read()}


def started(folder: Path, time: str) -> None:
    (folder / "events.jsonl").write_text(
        json.dumps({"time": time, "type": "log", "line": "x"}) + "\n"
    )


def test_ended_run_is_read_from_its_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", result=done(steps=30, loss=1.5, eval_loss=2.5))
    (folder / "progress.json").write_text(json.dumps(PROGRESS))
    started(folder, "2026-11-28T10:00:00.123+01:00")
    run = summaries(tmp_path)["a"]
    assert (run.status, run.method, run.model, run.data) == ("done", "bert", "m", "d.jsonl")
    assert (run.step, run.steps, run.loss, run.eval_loss) == (30, 30, 1.5, 2.5)
    assert (run.tokens_per_s, run.seconds) == (90.0, 75.0)
    assert (run.started, run.phase, run.eta_seconds) == ("2026-11-28T09:00:00+00:00", "", None)


def test_failed_run_has_its_error_in_one_line(tmp_path: Path) -> None:
    error = Problem("gpu", "memory", "none\nleft")
    write_run(tmp_path / "a", result=done(outcome="failed", code=5, error=error))
    run = summaries(tmp_path)["a"]
    assert (run.status, run.error) == ("failed", "gpu: expected memory, got none\\nleft.")


def test_run_without_result_is_running_while_it_is_held(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", unfinished=True)
    (folder / "progress.json").write_text(json.dumps(PROGRESS))
    (folder / "metrics.json").write_text('{"step": 10, "eval/loss": 3.0, "broken": "x"}')
    reader = Summaries(tmp_path)
    (before,) = reader.read()
    assert (before.status, before.eval_loss, before.eta_seconds) == ("unfinished", 3.0, 12.0)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    pid = os.fork()
    if not pid:  # another process: `holder` does not count this one
        with locked(folder, 0, print):
            os.write(lock, b"")
            Path(tmp_path / "held").touch()
            while not (tmp_path / "enough").exists():
                time.sleep(0.01)
        os._exit(0)
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        (now,) = reader.read()
        assert now == before.model_copy(update={"status": "running"})
    finally:
        (tmp_path / "enough").touch()
        os.waitpid(pid, 0)
        os.close(lock)
    assert reader.read()[0].status == "unfinished"


def test_runs_are_listed_with_stages_and_machines_newest_first(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new")
    started(old, "2020-01-01T00:00:00+00:00")
    started(new, "2030-01-01T00:00:00+00:00")
    write_run(old / "machine-1")
    write_run(old / "checkpoint-9")  # of a run: never looked into
    write_stages_run(tmp_path / "stages", "one", "two", begun=2)
    write_run(tmp_path / "queue" / "not-a-run")
    write_run(tmp_path / ".hidden" / "run")
    names = [run.name for run in Summaries(tmp_path).read()]
    assert names[0] == "new"
    assert sorted(names) == ["new", "old", "old/machine-1", "stages/1-one", "stages/2-two"]


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe", b'{"params": 3}', b"[" * 100_000, b"{}"]
)
def test_folder_with_a_foreign_run_json_is_broken(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "a<b>b"
    folder.mkdir()
    (folder / "run.json").write_bytes(content)
    run = summaries(tmp_path)["a<b>b"]
    assert run.status == "broken"
    assert run.error.startswith("run.json: ")
    assert "\n" not in run.error


def test_older_run_json_without_a_result_key_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "run.json").write_text('{"params": {"model_name": "m"}, "later": 1}')
    (folder / "progress.json").write_text('{"phase": "train"}')
    (folder / "metrics.json").write_text("[]")
    run = summaries(tmp_path)["a"]
    assert (run.status, run.model, run.step, run.loss) == ("unfinished", "m", None, None)


def test_log_without_run_json_is_a_row_and_an_empty_folder_none(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "run.json")
    found = summaries(tmp_path)
    assert {name: run.status for name, run in found.items()} == {"a": "broken", "c": "broken"}
    assert found["a"].error == "it holds no run.json"
    assert found["c"].error == "run.json: not a plain file"


def test_links_are_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "outside" / "run")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "a").mkdir()
    (root / "a" / "run.json").symlink_to(tmp_path / "outside" / "run" / "run.json")
    assert [(name, run.status) for name, run in summaries(root).items()] == [("a", "broken")]


def test_name_outside_of_utf8_is_a_row(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a\xff"
    os.mkdir(folder)
    with open(folder + b"/run.json", "w") as file:
        file.write("{")
    (run,) = Summaries(tmp_path).read()
    assert run.name.encode()
    assert run.status == "broken"


def test_unchanged_run_is_not_read_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    known = renewed("a", str(folder), None)
    assert renewed("a", str(folder), known)[1] is known[1]
    (folder / "metrics.json").write_text('{"eval/loss": 9.0}')
    assert renewed("a", str(folder), known)[1].eval_loss == 9.0


def test_missing_root_has_no_runs(tmp_path: Path) -> None:
    assert list(folders_of_runs(tmp_path / "no")) == []


def test_200_runs_are_listed_in_time(tmp_path: Path) -> None:
    for number in range(200):
        folder = write_run(tmp_path / f"run-{number}", metrics=(), unfinished=number % 10 == 0)
        (folder / "progress.json").write_text(json.dumps(PROGRESS))
        (folder / "metrics.json").write_text('{"eval/loss": 2.0}')
        started(folder, "2026-11-28T10:00:00+00:00")
    reader = Summaries(tmp_path)
    spent: list[float] = []
    for _ in range(2):
        began = time.thread_time()
        assert len(reader.read()) == 200
        spent.append(time.thread_time() - began)
    assert spent[0] < patience(0.3)
    assert spent[1] < spent[0] / 3


def test_numbers_and_texts_that_no_page_can_show_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", unfinished=True, model_name="m" * 5000)
    standing = {"phase": "train", "step": 10**30, "steps": 1, "percent": 10**400}
    (run / "progress.json").write_text(json.dumps(standing | {"heartbeat": ""}))
    (run / "metrics.json").write_text(json.dumps({"eval/loss": 10**30}))
    found = summaries(tmp_path)["a"]
    assert (found.status, found.step, found.eval_loss) == ("unfinished", None, None)
    assert len(found.model) == 1000
