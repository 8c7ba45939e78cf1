"""Run folders changed by others: foreign files stay, and each request counts once.

The numbers are those of the audit's findings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.compare import tensors_of
from faults.forks import Forked, Forks
from helpers.scenes import ENDLESS, LONGEST_S, contents, errors
from helpers.support import read_lines, wait_until, write_record

from plugin import cli
from plugin.base.digests import write_digests
from plugin.config.parse import parse
from plugin.parent.paths import inputs_inside
from plugin.parent.resume import cut_back, find_start
from plugin.run.folder import RunFolder


@pytest.fixture
def endless(forks: Forks, four_steps: Any, tmp_path: Path) -> Iterator[Forked]:
    """Yield a run that trains until it is stopped."""
    running = forks.start(tmp_path / "endless" / "run", *four_steps, *ENDLESS)
    wait_until(lambda: steps_of(running.folder) >= 2, "two steps", deadline_s=LONGEST_S)
    yield running
    running.kill(parent=True)


def steps_of(folder: Path) -> int:
    progress = folder / "progress.json"
    return json.loads(progress.read_text())["step"] if progress.exists() else 0


# --- what is removed


@pytest.fixture
def failed(forks: Forks, four_steps: Any, tmp_path: Path) -> Path:
    """Return the folder of a run that broke before its first step and is kept."""
    done = forks.run(tmp_path / "fd", *four_steps, fault="load:raise:0:0")
    assert done.code == 1
    assert (done.folder / "data" / "report.json").is_file()
    return done.folder


@pytest.mark.parametrize(
    "name",
    [
        "data/mine.jsonl",
        "data/train/notes.txt",
        "tb/plan.md",
        "data/tokenizer/own/x.json",
        "log.md",
    ],
)
def test_a_failed_try_is_not_cleared_of_a_users_file(
    name: str, forks: Forks, four_steps: Any, failed: Path
) -> None:
    """Audit 3."""
    (failed / name).parent.mkdir(exist_ok=True)
    (failed / name).write_text("mine")
    before = contents(failed)
    refused = forks.run(failed, *four_steps)
    assert refused.code == 2
    assert name.removesuffix("/x.json") in errors(refused)["run_dir"]
    assert "which no run has written" in errors(refused)["run_dir"]
    assert contents(failed) == before


def test_a_users_own_data_folder_is_not_taken_for_ours(
    forks: Forks, four_steps: Any, failed: Path, pairs_file: Path
) -> None:
    """Audit 3: the data set of the next try lies in it."""
    shutil.rmtree(failed / "data")
    (failed / "data").mkdir()
    shutil.copy(pairs_file, failed / "data" / "mine.jsonl")
    refused = forks.run(
        failed, *four_steps, "--dataset_name", failed / "data" / "mine.jsonl", "--run_dir", failed
    )
    assert refused.code == 2
    assert "which lies in" in errors(refused)["dataset_name"]
    assert (failed / "data" / "mine.jsonl").read_bytes() == pairs_file.read_bytes()


def test_a_failed_try_with_its_own_files_alone_is_cleared(
    forks: Forks, four_steps: Any, failed: Path
) -> None:
    done = forks.run(failed, *four_steps, "--fuse_model", "false")
    assert done.code == 0, done.err


@pytest.mark.parametrize("resume", ["false", "true"])
def test_a_record_made_by_hand_frees_nothing(
    resume: str, forks: Forks, four_steps: Any, tmp_path: Path
) -> None:
    """Audit 3: in a work tree of git."""
    project = tmp_path / "proj"
    for name in ("data/mine.csv", "tb/curves", ".git/HEAD", "log.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine")
    (project / "run.json").write_text(
        '{"params":{},"environment":{},"result":{"outcome":"failed"}}'
    )
    (project / "metrics.jsonl").touch()
    before = contents(project)
    refused = forks.run(project, *four_steps, "--resume", resume)
    assert refused.code == 2
    assert contents(project) == before
    write_record(project, "failed")  # and a record that could be ours, if not for its neighbours
    before = contents(project)
    assert forks.run(project, *four_steps, "--resume", resume).code == 2
    assert contents(project) == before


# --- input lies outside the run folder


def test_input_inside_a_new_run_folder_is_refused(
    four_steps: Any,
    pairs_file: Path,
    tiny_bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Audit 3: by name or by a link, file or folder, one of a mixture; nothing is touched."""
    run = tmp_path / "run"
    (run / "in").mkdir(parents=True)
    shutil.copy(pairs_file, run / "in" / "d.jsonl")
    shutil.copytree(tiny_bert, run / "m")
    (tmp_path / "link").symlink_to(run / "in")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "d.jsonl").symlink_to(run / "in" / "d.jsonl")
    before = contents(run)
    for name, value in {
        "dataset_name": [
            run / "in" / "d.jsonl",
            tmp_path / "link",
            f"{pairs_file}[train:9]|{run}/in[train:3]",
            tmp_path / "mixed",
        ],
        "model_name": [run / "m"],
        "tokenizer_name": [run / "m"],
        "model_config": [run / "m" / "config.json"],
    }.items():
        for one in value:
            words = [*map(str, four_steps), "--run_dir", str(run), f"--{name}", str(one)]
            if name == "model_name":
                words += ["--model_config", ""]
            assert cli.main(["train", *words]) == 2
            err = capsys.readouterr().err
            assert f"error[2]: {name}: expected a path outside of run_dir, got " in err
            assert f", which lies in {run}. Choose another run_dir" in err
    assert contents(run) == before


def test_resumed_run_may_read_its_old_input(pairs_file: Path, tmp_path: Path) -> None:
    """Audit 3: in a resumed run too, another value may not name a file inside the folder."""
    folder = RunFolder(tmp_path / "run")
    (folder / "in").mkdir(parents=True)
    for name in ("d.jsonl", "e.jsonl"):
        shutil.copy(pairs_file, folder / "in" / name)
    write_record(folder.path, None)
    record = folder.read_run()
    record.params["dataset_name"] = str(folder / "in" / "d.jsonl")
    folder.write_run(record)

    def found(name: str, resume: str) -> list[str]:
        values = {
            "model_config": "c",
            "dataset_name": str(folder / "in" / name),
            "run_dir": str(folder.path),
            "resume": resume,
        }
        return [problem.field for problem in inputs_inside(parse(values).params, folder)]

    assert found("d.jsonl", "true") == []
    assert found("e.jsonl", "true") == found("d.jsonl", "false") == ["dataset_name"]


@pytest.mark.parametrize("line", ["[]", "{}", "7", '{"step": "x"}', "[" * 5000])
def test_a_resume_leaves_lines_that_are_no_metrics(line: str, run_copy: Path) -> None:
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    cut_back(RunFolder(run_copy), 2, lambda line: None)
    assert [one["step"] for one in read_lines(run_copy / "metrics.jsonl")] == []


@pytest.mark.parametrize("state", ["[]", "{}", '{"step": 4, "seed": 0, "step_size": "4"}', "\x00"])
def test_a_state_of_any_content_is_skipped(state: str, run_copy: Path) -> None:
    """Audit 21: the digests are right, made by somebody else."""
    checkpoint = run_copy / "checkpoint-4"
    (checkpoint / "state.json").write_text(state)
    (checkpoint / "digests.json").unlink()
    write_digests(checkpoint)
    said: list[str] = []
    start = find_start(RunFolder(run_copy), None, said.append)
    assert start is not None
    assert start.step == 2
    assert said[0].startswith("resume: checkpoint-4 is skipped: state.json ")


def test_results_of_another_run_are_trained_further(
    forks: Forks, four_steps: Any, run_copy: Path, tmp_path: Path
) -> None:
    """Another run's results lie outside of the run folder; a resumed run may name its old input."""
    options = ("--model_config", "", "--train_steps", 2, "--fuse_model", "false")
    done = forks.run(tmp_path / "next", *four_steps, *options, "--model_name", run_copy / "fused")
    assert done.code == 0, done.err


# --- a finished run, resumed


def test_a_kill_before_the_new_fused_leaves_the_old(
    forks: Forks, four_steps: Any, run_copy: Path
) -> None:
    """Audit 7."""
    old = tensors_of(run_copy / "fused")
    longer = (*four_steps, "--resume", "true", "--train_steps", 6)
    for fault in ("step:kill:5:0", "fuse:kill:6:0"):
        assert forks.run(run_copy, *longer, fault=fault).code == 8
        assert tensors_of(run_copy / "fused") == old != {}
    done = forks.run(run_copy, *longer)
    assert done.code == 0, done.err
    assert tensors_of(run_copy / "fused") != old
    assert not list(run_copy.glob("replaced-*")) + list(run_copy.glob(".fused*"))


def test_a_stop_does_not_show_the_fused_of_before(
    forks: Forks, four_steps: Any, run_copy: Path
) -> None:
    stopped = forks.run(
        run_copy, *four_steps, "--resume", "true", "--train_steps", 9, fault="step:stop:6:0"
    )
    assert stopped.result["outcome"] == "stopped", stopped.err
    assert (run_copy / "fused").is_dir()
    assert "fused model" not in stopped.out


def test_a_run_that_fuses_no_more_sets_the_fused_aside(
    forks: Forks, four_steps: Any, run_copy: Path
) -> None:
    """The fused model of a finished run is always its own."""
    old = tensors_of(run_copy / "fused")
    done = forks.run(
        run_copy, *four_steps, "--resume", "true", "--train_steps", 6, "--fuse_model", "false"
    )
    assert done.code == 0, done.err
    assert not (run_copy / "fused").exists()
    assert tensors_of(run_copy / "replaced-fused") == old
    assert "the fused model of before is now replaced-fused" in done.err


# --- requests


def make_folder(path: Path) -> None:
    path.mkdir()


def make_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


def make_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [make_folder, make_full_folder, make_link])
def test_requests_of_any_kind_count_once(make: Callable[[Path], None], endless: Forked) -> None:
    """Audit 10: SAVE, SAMPLE and STOP as folders and links."""
    folder = endless.folder
    make(folder / "SAVE")
    make(folder / "SAMPLE")
    wait_until(lambda: list(folder.glob("checkpoint-*")), "the save", deadline_s=LONGEST_S)
    wait_until(lambda: read_lines(folder / "samples.jsonl"), "the samples", deadline_s=LONGEST_S)
    at = steps_of(folder)
    wait_until(lambda: steps_of(folder) > at + 4, "steps after it", deadline_s=LONGEST_S)
    make(folder / "STOP")
    ended = endless.wait()
    assert (ended.code, ended.result["outcome"]) == (0, "stopped"), ended.err
    assert len(list(folder.glob("checkpoint-*"))) == 2, "one for SAVE, one for STOP"
    warned = [line for line in ended.err.splitlines() if line.startswith("warning:")]
    full = make is make_full_folder
    assert len(warned) == (3 if full else 0), warned
    assert {name for name in ("SAVE", "SAMPLE", "STOP") if (folder / name).exists()} == (
        {"SAVE", "SAMPLE", "STOP"} if full else set()
    )
    if full:
        (problem,) = RunFolder(folder).problems(goes_on=True)
        assert "STOP, which is a folder that holds something" in problem.got


def test_an_old_stop_of_any_kind_does_not_stop_a_run(
    forks: Forks, four_steps: Any, run_copy: Path, victim: Path
) -> None:
    (run_copy / "STOP").symlink_to(victim)
    (run_copy / "SAVE").mkdir()
    done = forks.run(run_copy, *four_steps, "--resume", "true", "--train_steps", 6)
    assert done.result["outcome"] == "done", done.err


def test_asking_writes_through_no_link(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "STOP").symlink_to(tmp_path / "outside")
    folder.ask("STOP")
    assert folder.asked("STOP")
    assert not (tmp_path / "outside").exists()


# --- two starters


def test_of_two_simultaneous_starters_one_trains(
    forks: Forks, four_steps: Any, tmp_path: Path
) -> None:
    """Five times, the other starter waits or is refused by name, and the run is complete."""
    for number in range(5):
        folder = tmp_path / str(number) / "run"
        first = forks.start(folder, *four_steps, "--fuse_model", "false")
        other = folder.parent / "other"  # its output lies next to this name
        second = forks.start(other, *four_steps, "--fuse_model", "false", "--run_dir", folder)
        scenes = [first.wait(), second.wait()]
        assert sorted(scene.code for scene in scenes) == [0, 2], [scene.err for scene in scenes]
        (refused,) = [scene for scene in scenes if scene.code == 2]
        assert str(folder) in errors(refused)["run_dir"]
        record = json.loads((folder / "run.json").read_text())["result"]
        assert (record["outcome"], record["steps"]) == ("done", 4)
        assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [4]
        assert not other.exists()
