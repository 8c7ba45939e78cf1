"""Real `main.py train`: parent, workers, the run folder, and every way in which a run can end."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from faults.forks import Forks
from helpers.scenes import ENDS, LONGEST_S, Scene, broken_off, whole
from helpers.support import ERROR, ROOT, processes_naming, read_lines, run_main
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plugin.config.params import SCHEMA
from plugin.run.folder import RunFolder

PROMPT = "What colour is the sky?"


@pytest.fixture(scope="module")
def scene(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, pairs_file: Path
) -> Callable[[str], Scene]:
    root = tmp_path_factory.mktemp("two programs")  # the space belongs to the test
    job = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--learning_rate",
        "3e-3",
    )
    six = (*job, "--train_steps", 6, "--logging_steps", 1)
    forked = {
        "two processes": (*six, "--batch_size", 4, "--num_processes", 2, "--train_device", "cpu"),
        "accumulated": (*six, "--batch_size", 2, "--gradient_accumulation_steps", 4),
        "again": ("--config", root / "one" / "run.json"),
    }

    @cache
    def played(name: str) -> Scene:
        if name in ENDS:
            ended = broken_off(ENDS[name], root / name, *job, "--batch_size", 4)
        elif name == "one":
            ended = whole(root / name, *six, "--batch_size", 8, "--json")
        else:
            ended = forks.run(root / name, *forked[name])
        assert processes_naming(str(ended.folder)) == []
        with RunFolder(ended.folder).locked(
            0, lambda line: None
        ):  # a remaining rank holds the lock
            return ended

    return played


@pytest.fixture
def one(scene: Callable[[str], Scene]) -> Scene:
    done = scene("one")
    assert done.code == 0, done.err
    return done


# --- the run folder of a run that was not disturbed


def test_the_run_folder_holds_every_published_file(one: Scene) -> None:
    files = {
        "run.json",
        "events.jsonl",
        "progress.json",
        "metrics.json",
        "metrics.jsonl",
        "log.txt",
        "samples.jsonl",
    }
    assert all((one.folder / name).stat().st_size for name in files)
    assert list((one.folder / "tb").glob("events.out.tfevents.*"))
    assert (one.folder / "fused" / "model.safetensors").is_file()
    assert sorted(path.name for path in one.folder.glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]  # the last two
    assert not list(one.folder.rglob("*.part"))
    assert not {path.suffix for path in one.folder.rglob("*")} & {".bin", ".pt", ".pth", ".pkl"}


def test_run_json_holds_parameters_environment_and_result(one: Scene) -> None:
    run = one.json("run.json")
    assert set(run) == {"params", "environment", "result"}
    assert set(run["params"]) == set(SCHEMA)
    assert run["params"]["batch_size"] == 8
    assert {"versions", "devices", "git", "data"} <= set(run["environment"])
    result = run["result"]
    assert (result["outcome"], result["code"], result["error"], result["steps"]) == (
        "done",
        0,
        None,
        6,
    )
    assert {"max_logit_difference", "path"} <= set(result["fuse"])
    assert result["fuse"]["max_logit_difference"] < 1e-5
    assert {"train", "eval"} == set(result["truncation"])
    assert result["throughput"]["tokens_per_s"] > 0
    assert result["eval_loss"] == one.json("metrics.json")["eval/loss"]


def test_run_json_says_how_much_memory_the_run_took(one: Scene) -> None:
    assert one.result["memory"]


def test_progress_json_has_its_keys_from_the_start(
    one: Scene, scene: Callable[[str], Scene]
) -> None:
    keys = {"phase", "step", "steps", "percent", "eta_seconds", "loss", "tokens_per_s", "heartbeat"}
    progress = one.json("progress.json")
    assert (progress["step"], progress["steps"], progress["percent"]) == (6, 6, 100)
    assert datetime.fromisoformat(progress["heartbeat"]).utcoffset() == timedelta(0)
    assert keys <= set(progress)
    assert keys <= set(scene("STOP").seen["progress"])


def test_info_md_names_every_curve_of_the_run_and_no_other(one: Scene) -> None:
    board = EventAccumulator(str(one.folder / "tb"))
    board.Reload()
    written = {tag for kind in ("scalars", "histograms", "tensors") for tag in board.Tags()[kind]}
    written = {re.sub(r"_t\d\d_\d+$", "_tXX_YY", tag) for tag in written}
    written = {re.sub(r"^samples/\d+/text_summary$", "samples/N", tag) for tag in written}
    assert {
        "eval/loss_tXX_YY",
        "samples/N",
        "train/loss",
        "time/save",
        "lengths/train",
        "hparams/loss",
    } <= written
    _, _, told = (ROOT / "info.md").read_text(encoding="utf-8").partition("## What the curves mean")
    rows = [
        line.split("|")[1]
        for line in told.partition("\n## ")[0].splitlines()
        if line.startswith("|")
    ]
    named = {tag for row in rows for tag in re.findall(r"`([^`]+)`", row)}
    assert named == written | {"train/mfu"}, "mfu is of a GPU's peak"


def test_metrics_jsonl_has_one_object_a_logging_or_eval_step(one: Scene) -> None:
    lines = read_lines(one.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval/loss" in line] == [0, 2, 4, 6]
    for line in lines:
        if "loss" in line:
            assert {
                "loss",
                "learning_rate",
                "grad_norm",
                "tokens_per_s",
                "supervised_tokens_per_s",
            } <= set(line)
        else:
            assert [name for name in line if re.fullmatch(r"eval/loss_t\d\d_\d+", name)]
    latest: dict[str, float] = {}
    for line in lines:
        latest |= line
    assert one.json("metrics.json") == latest


def test_events_have_a_time_and_a_type_and_end_with_finished(one: Scene) -> None:
    events = read_lines(one.folder / "events.jsonl")
    assert {event["type"] for event in events} == {
        "log",
        "progress",
        "metrics",
        "checkpoint",
        "sample",
        "finished",
    }
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert times == sorted(times)
    assert events[-1]["type"] == "finished"
    assert [event["step"] for event in events if event["type"] == "checkpoint"] == [2, 4, 6]


def test_samples_show_an_answer_and_its_states(one: Scene) -> None:
    samples = read_lines(one.folder / "samples.jsonl")
    assert {sample["step"] for sample in samples} == {0, 2, 4, 6}
    for sample in samples:
        assert {"step", "prompt", "expected", "text", "nfe", "trace"} == set(sample)


def test_result_is_one_json_line_on_stdout(one: Scene) -> None:
    """Everything else is on stderr."""
    (line,) = one.out.splitlines()
    shown = json.loads(line)
    assert (shown["outcome"], shown["run_dir"]) == ("done", str(one.folder))
    assert "done: 6 steps" in one.err.splitlines()[-1]
    assert "\x1b" not in one.err


def test_fused_model_and_checkpoints_load_with_transformers(one: Scene) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    for folder in (one.folder / "fused", one.folder / "checkpoint-6"):
        model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        ids = AutoTokenizer.from_pretrained(folder)(
            "What colour is the sky?", return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        assert logits.shape == (*ids.shape, 300)
        assert bool(logits.isfinite().all())


def test_chat_prints_one_object(one: Scene) -> None:
    done = run_main(
        "chat", one.folder, "--prompt", PROMPT, "--json", "--max_new_tokens", 8, timeout_s=LONGEST_S
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"prompt", "text", "steps", "nfe", "seconds", "tokens_per_forward"}
    assert answer["prompt"] == PROMPT
    assert 1 <= answer["steps"] <= 8
    assert answer["seconds"] > 0


# --- the same run in other layouts


def test_the_model_learns_in_six_steps(one: Scene) -> None:
    """The traces below are compared while the weights move."""
    evaluated = [line["eval/loss"] for line in one.trace() if "eval/loss" in line]
    assert evaluated[-1] < evaluated[0] - 0.2


def test_run_json_repeats_the_run_to_the_last_digit(
    one: Scene, scene: Callable[[str], Scene]
) -> None:
    again = scene("again")
    assert again.code == 0, again.err
    assert again.folder != one.folder
    assert again.trace() == one.trace()
    theirs, ours = ({**done.json("run.json")["params"], "run_dir": ""} for done in (one, again))
    assert theirs == ours
    assert (again.folder / "fused" / "model.safetensors").read_bytes() == (
        one.folder / "fused" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("name", ["accumulated", "two processes"])
def test_any_split_of_a_step_gives_the_same_trace(
    one: Scene, scene: Callable[[str], Scene], name: str
) -> None:
    split = scene(name)
    assert split.code == 0, split.err
    assert split.losses() == pytest.approx(one.losses(), rel=1e-5)
    evaluated = [
        [line["eval/loss"] for line in done.trace() if "eval/loss" in line] for done in (split, one)
    ]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)
    assert split.json("run.json")["environment"]["processes"] == (
        2 if name == "two processes" else 1
    )


# --- runs that end early


def test_the_stop_file_saves_and_is_a_success(scene: Callable[[str], Scene]) -> None:
    stopped = scene("STOP")
    assert (stopped.code, stopped.result["outcome"], stopped.result["code"]) == (0, "stopped", 0)
    assert stopped.last_checkpoint().name == f"checkpoint-{stopped.result['steps']}"
    assert loads(stopped.last_checkpoint())


def test_a_signal_saves_and_exits_with_its_number(scene: Callable[[str], Scene]) -> None:
    stopped = scene("SIGTERM")
    assert (stopped.code, stopped.result["outcome"], stopped.result["code"]) == (
        143,
        "stopped",
        143,
    )
    assert stopped.last_checkpoint().name == f"checkpoint-{stopped.result['steps']}"
    assert loads(stopped.last_checkpoint())


def test_workers_outlive_a_killed_parent_only_to_save(scene: Callable[[str], Scene]) -> None:
    orphaned = scene("parent killed")
    assert orphaned.code == -signal.SIGKILL
    assert orphaned.seen["took"] < timedelta(seconds=30)
    assert loads(orphaned.last_checkpoint())
    assert orphaned.json("run.json")["result"] is None
    assert read_lines(orphaned.folder / "events.jsonl")[-1]["type"] == "finished"


def test_folder_of_killed_parent_is_locked_until_workers_exit(
    scene: Callable[[str], Scene],
) -> None:
    seen = scene("parent killed").seen
    assert len(seen["left"]) == 1, "the worker was still there when the second starter came"
    (line,) = seen["said"]
    assert re.search(r"in use by process \d+ or its workers; waiting up to 60 s", line)
    assert seen["alive under the next lock"] == []


def test_a_second_signal_stops_now_and_the_last_save_is_intact(
    scene: Callable[[str], Scene],
) -> None:
    ended = scene("SIGTERM twice")
    assert (ended.code, ended.result["outcome"], ended.result["code"]) == (143, "stopped", 143)
    assert ended.seen["took"] < timedelta(seconds=40)
    assert [path.name for path in ended.folder.glob("checkpoint-*")] == ended.seen["saved"]
    assert loads(ended.last_checkpoint())


def test_a_killed_worker_is_exit_8_with_the_likely_cause(scene: Callable[[str], Scene]) -> None:
    died = scene("worker killed")
    (line,) = [line for line in died.err.splitlines() if ERROR.match(line)]
    assert died.code == died.result["code"] == 8
    assert line.startswith("error[8]: worker: ")
    assert "worker died (likely out of memory): rank 0 ended by SIGKILL" in line
    assert died.result["error"]["field"] == "worker"
    assert died.seen["took"] < timedelta(seconds=15)


def loads(checkpoint: Path) -> bool:
    from safetensors.torch import load_file
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_pretrained(checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    return state["step"] == int(checkpoint.name.split("-")[1]) and bool(
        load_file(checkpoint / "optimizer.safetensors")
    )
