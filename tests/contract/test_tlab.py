"""Results in the plugin-era host's own places: board, model, adapter, figures, cause."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.published_checkpoints import write_checkpoint
from helpers.support import ROOT, pairs, read_lines, run_python, wait_until
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from plugin.config.families import ARCHITECTURES
from plugin.config.parse import parse
from plugin.hosts.plugin_era.job import adaptor_name, read_job

from .drivers import LONGEST_S, Ended, TlabDriver

CALL_S = 0.05


@dataclass
class Seen:
    driver: TlabDriver
    ended: Ended
    job: dict[str, Any]
    imports: list[dict[str, Any]]  # of the SDK
    pid: int


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, pairs_file: Path) -> Seen:
    """Run a job with an adapter, a spaced template and a foreign field, on a slow host."""
    driver = TlabDriver(tmp_path_factory.mktemp("tlab"), {"toy_ds": pairs_file})
    driver.env["FAKE_CALL_S"] = str(CALL_S)
    (driver.ws / "models" / f"{tiny_bert.name}_mine").mkdir(parents=True)
    (driver.ws / "models" / f"{tiny_bert.name}_mine" / "theirs").touch()
    values = {
        "model_name": tiny_bert,
        "dataset_name": "toy_ds",
        "train_device": "cpu",
        "max_length": 64,
        "lora": "on",
    }
    values |= {
        "train_steps": "40",
        "logging_steps": "1",
        "learning_rate": "3e-3",
        "adaptor_name": "mine",
        "save_steps": "20",
    }
    values |= {"eval_steps": "20", "eval_on_start": "false"}
    running = driver.start(
        "1", {name: str(value) for name, value in values.items()}, template="my first"
    )
    ended = running.end()
    assert ended.outcome == "done", ended.log
    return Seen(
        driver, ended, driver.job("1"), read_lines(driver.ws / "imports.jsonl"), running.program.pid
    )


def test_workers_start_before_the_sdk_and_never_import_it(seen: Seen) -> None:
    """Only the parent waits for a slow host."""
    (only,) = seen.imports
    assert only["logs of workers"] == [str(seen.ended.folder / "log.txt")]
    assert only["pid"] == seen.pid


def test_values_of_the_form_win_and_are_logged(seen: Seen) -> None:
    lines = seen.ended.log.splitlines()
    assert "  train_steps = 40" in lines
    assert "  lora = true" in lines
    assert "  learning_rate = 0.003" in lines
    assert any(
        line.startswith("the templates are not used") or "templates are not used" in line
        for line in lines
    )


def test_progress_comes_at_most_once_a_second_and_ends_at_100(seen: Seen) -> None:
    beats = seen.job["beats"]
    assert len(beats) >= 3
    *during, (_, last) = beats
    assert last == 100
    assert all(0 <= percent <= 99 for _, percent in during)
    assert [percent for _, percent in during] == sorted(percent for _, percent in during)
    assert min(b[0] - a[0] for a, b in pairwise(during)) >= 1.0


def test_completion_says_what_happened(seen: Seen) -> None:
    data = seen.job["job_data"]
    assert data["completion_status"] == "success"
    assert data["completion_details"].startswith("done: 40 steps")
    assert seen.ended.log.splitlines()[-1] == data["completion_details"]
    started, ended = (
        time.strptime(data[name], "%Y-%m-%d %H:%M:%S") for name in ("start_time", "end_time")
    )
    assert started < ended
    assert seen.job["status"] == "RUNNING", "left to the host"


def test_the_remaining_time_is_written_in_seconds(seen: Seen) -> None:
    assert 0 <= seen.job["job_data"]["estimated_time_remaining"] < 600


def test_samples_are_in_the_log(seen: Seen) -> None:
    lines = [line for line in seen.ended.log.splitlines() if ": sample: " in line]
    asked = {sample["prompt"] for sample in read_lines(seen.ended.folder / "samples.jsonl")}
    assert {line.split(": sample: ")[1].split(" -> ")[0] for line in lines} == asked
    assert any(line.startswith("step 40: ") for line in lines)


def test_the_model_is_listed_next_to_one_of_that_name(seen: Seen, tiny_bert: Path) -> None:
    name = f"{tiny_bert.name}_mine-job1"
    folder = seen.driver.ws / "models" / name
    listed = json.loads((folder / "index.json").read_text())["json_data"]
    assert listed["architecture"] == "ModernBertForMaskedLM"
    assert listed["architecture"] in ARCHITECTURES
    assert listed["pipeline_tag"] == "fill-mask"
    assert (listed["training_method"], listed["loss_norm"]) == ("bert", "token")
    assert "loss_weight_type" not in listed, "Dream's alone"
    assert listed["description"] == "tiny_bert, trained as a diffusion model."
    assert (folder / "model.safetensors").exists()
    assert (folder / "_tlab_provenance.json").exists()
    assert seen.job["job_data"]["fused_model_name"] == name
    assert "the name is taken" in seen.ended.log


def test_the_adapter_is_in_adaptor_output_dir(seen: Seen, tiny_bert: Path) -> None:
    folder = seen.driver.ws / "adaptors" / "tiny" / "mine"
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        seen.ended.folder / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    card = (folder / "README.md").read_text()
    assert f"(method `bert`) on `{tiny_bert.name}`." in card
    assert "More Information Needed" not in card, "peft's empty form"


def test_real_tensorboard_reads_the_curves_of_the_viewer(seen: Seen) -> None:
    boards = seen.driver.ws / "experiments" / "probe" / "tensorboards"
    for folder in (
        "my first",
        "my_first",
    ):  # the template's folder, and the one that the viewer opens
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(boards / folder))
        multiplexer.Reload()
        assert list(multiplexer.Runs()) == ["job_1_my_first"]
        steps = [event.step for event in multiplexer.Scalars("job_1_my_first", "train/loss")]
        assert steps == list(range(1, 41))
    assert seen.job["job_data"]["tensorboard_output_dir"] == str(boards / "my_first")


def test_checkpoints_are_shown(seen: Seen) -> None:
    shelf = seen.driver.ws / "jobs" / "1" / "checkpoints"
    assert seen.job["job_data"]["checkpoints"] == [
        str(shelf / "checkpoint-20"),
        str(shelf / "checkpoint-40"),
    ]
    assert all(Path(path, "state.json").exists() for path in seen.job["job_data"]["checkpoints"])


def test_metrics_hold_the_evaluation(seen: Seen) -> None:
    metrics = json.loads(
        (seen.driver.ws / "experiments/probe/tensorboards/my first/metrics.json").read_text()
    )
    assert (
        metrics["eval/loss"]
        == json.loads((seen.ended.folder / "metrics.json").read_text())["eval/loss"]
    )


def bad(
    driver: TlabDriver, number: int, tiny_bert: Path, change: dict[str, str], sweep: str = ""
) -> Ended:
    values = {
        "model_name": str(tiny_bert),
        "dataset_name": "toy_ds",
        "train_device": "cpu",
        "max_length": "64",
    }
    return driver.start(str(number), {**values, **change}, sweep=sweep).end()


@pytest.mark.parametrize(
    ("number", "change", "sweep", "words"),
    [
        (
            20,
            {"dataset_name": ""},
            "",
            "dataset_name: expected a file, folder or hub id, got nothing",
        ),
        (
            21,
            {"dataset_name": "unheard of"},
            "",
            "dataset_name: expected a dataset of the host, got 'unheard of'",
        ),
        (22, {"adaptor_name": "two words"}, "", "adaptor_name: expected a name of letters"),
        (23, {"lora": "perhaps"}, "", "lora: expected true or false, got 'perhaps'"),
        (
            24,
            {"eval_strategy": "no"},
            "0",
            "eval_strategy: expected steps or epoch in a sweep, got no",
        ),
        (25, {"learning_rate": "1e-4,"}, "1", "learning_rate: expected a number"),
        (
            26,
            {"dataset_name": "toy_ds[train:9]|lost"},
            "",
            "dataset_name: expected a dataset of the host, got 'lost'",
        ),
        (
            27,
            {"training_method": "llada"},
            "",
            "training_method: expected bert for a ModernBertForMaskedLM, got llada",
        ),
        (
            28,
            {"model_name": "some/hub-id", "training_method": "dream"},
            "",
            "expected bert for a ModernBertForMaskedLM, got dream",
        ),
        (
            29,
            {"train_device": "tpu"},
            "",
            "train_device: expected auto, cuda or cpu, got tpu",
        ),
    ],
)
def test_what_a_form_can_send_wrongly_is_refused_by_name(
    seen: Seen, tiny_bert: Path, number: int, change: dict[str, str], sweep: str, words: str
) -> None:
    ended = bad(seen.driver, number, tiny_bert, change, sweep)
    assert ended.outcome == "failed"
    assert words in ended.details
    assert ended.score is not None
    assert ended.score > 1e6, "a host that ranks by it never takes this run"
    assert ended.log.splitlines()[-1] in ended.details
    assert "Traceback" not in ended.log or number == 21
    assert not ended.folder.exists(), "no worker was started"
    board = seen.driver.ws / "experiments" / "probe" / "tensorboards" / "plain"
    assert not list(board.rglob(f"job_{number}_*")), "no run among the curves"


def test_an_input_file_that_cannot_be_read_is_one_line(seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    path.write_text('{"config": {}}')
    argv = ["harness", "--plugin_dir", "x", "--input_file", str(path)]
    code = f"import sys; sys.path.append({str(ROOT)!r}); sys.argv = {argv!r}; import main; print(main.main())"
    done = run_python(code, cwd=tmp_path)
    assert done.stdout == "2\n"
    assert done.stderr.startswith(
        "error[2]: input_file: expected the host's JSON with experiment and config"
    )
    assert done.stderr.count("\n") == 1


def test_the_chosen_method_is_the_one_that_trains(seen: Seen, tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "dream", "dream", (text for row in pairs() for text in row.values())
    )
    values = {
        "model_name": base,
        "dataset_name": "toy_ds",
        "train_device": "cpu",
        "max_length": 64,
        "training_method": "dream",
    }
    values |= {
        "train_steps": "3",
        "logging_steps": "1",
        "loss_weight_type": "uniform",
        "save_steps": 3,
        "eval_strategy": "no",
    }
    ended = seen.driver.start(
        "30", {name: str(value) for name, value in values.items()}, template="a dream"
    ).end()
    assert ended.outcome == "done", ended.log
    listed = json.loads((seen.driver.ws / "models" / "dream_a_dream" / "index.json").read_text())[
        "json_data"
    ]
    assert listed["architecture"] == "DreamModel"
    assert (listed["training_method"], listed["loss_weight_type"], listed["loss_norm"]) == (
        "dream",
        "uniform",
        "masked",
    )
    assert (
        "train/cut_share" in ended.log
        or "cut_share" in (ended.folder / "metrics.jsonl").read_text()
    ), "CART's cutoffs ran"


def test_stopped_is_set_when_the_workers_are_gone(seen: Seen, tiny_bert: Path) -> None:
    values = {
        "model_name": tiny_bert,
        "dataset_name": "toy_ds",
        "train_device": "cpu",
        "max_length": 64,
        "eval_strategy": "no",
    }
    values |= {"train_steps": 1_000_000, "save_steps": 1_000_000}
    running = seen.driver.start("40", {name: str(value) for name, value in values.items()})
    progress = running.folder / "progress.json"
    wait_until(
        lambda: progress.exists() and json.loads(progress.read_text())["step"] > 2,
        "a few steps",
        deadline_s=LONGEST_S,
    )
    running.stop()
    ended = running.end()
    job = seen.driver.job("40")
    assert (ended.outcome, job["status"], job["alive"]) == ("stopped", "STOPPED", [])
    (checkpoint,) = ended.folder.glob("checkpoint-*")
    step = checkpoint.name.removeprefix("checkpoint-")
    details = job["job_data"]["completion_details"]
    assert details.startswith(f"stopped after step {step}, loss ")
    assert details.endswith(f"resume: {ended.folder}")
    assert ended.log.splitlines()[-1] == details


@pytest.mark.parametrize(
    ("form", "template", "parsed", "name"),
    [
        ({"adaptor_name": "adaptor"}, "my first", "adaptor", "my_first"),
        ({"adaptor_name": "mine"}, "my first", "mine", "mine"),
        (
            {"adaptor_name": "adaptor"},
            "my first",
            "of-advanced",
            "of-advanced",
        ),  # typed in Advanced, which wins over the form
        ({"adaptor_name": ""}, "x" * 80, "adaptor", "x" * 64),
        ({}, "日本", "adaptor", "adaptor"),
        ({}, "-.a", "adaptor", "a"),
    ],
)
def test_the_results_are_named_by_the_form_or_the_template(
    tmp_path: Path, form: dict[str, str], template: str, parsed: str, name: str
) -> None:
    of_model = f"{tmp_path}/adaptors/tiny"
    config = {
        "job_id": 1,
        "template_name": template,
        **form,
        "output_dir": f"{tmp_path}/experiments/e/tensorboards/t",
    }
    config["adaptor_output_dir"] = f"{of_model}/{form.get('adaptor_name', 'adaptor')}"
    path = tmp_path / "input.json"
    path.write_text(json.dumps({"experiment": {"name": "e"}, "config": config}))
    job = read_job(str(path))
    assert adaptor_name(job, parsed) == name
    assert job.adaptors == Path(of_model)
    assert parse({"dataset_name": "d", "model_name": "m", "adaptor_name": name})
