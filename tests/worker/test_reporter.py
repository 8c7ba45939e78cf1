"""Content of TensorBoard: curves that move, and parameters that can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import read_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from plugin.config.params import Params
from plugin.run.folder import RunFolder
from plugin.run.heartbeat import Heartbeat
from plugin.worker.reporter import Reporter


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    return Reporter(RunFolder(tmp_path), Heartbeat(tmp_path / "beat"), speaks=True)


def board(folder: Path, reporter: Reporter) -> EventAccumulator:
    reporter.close()
    read = EventAccumulator(str(folder / "tb"))
    read.Reload()
    return read


def test_runs_are_compared_by_what_shaped_them(reporter: Reporter, tmp_path: Path) -> None:
    params = Params(
        dataset_name="data.jsonl", lora=True, learning_rate=3e-4, run_dir="runs/here", num_proc=3
    )
    reporter.hparams(params.as_json(), {"loss": 2.0, "eval_loss": 1.5})
    read = board(tmp_path, reporter)
    content = read.PluginTagToContent("hparams")
    shown = HParamsPluginData.FromString(
        content["_hparams_/session_start_info"]
    ).session_start_info.hparams
    assert shown["learning_rate"].number_value == 3e-4
    assert (shown["lora"].string_value, shown["load_in_4bit"].string_value) == ("true", "false"), (
        "as a number it is 0.0000"
    )
    assert {"dataset_name", "batch_size", "train_steps", "seed", "training_method"} <= shown.keys()
    assert (
        not {"run_dir", "num_proc", "main_process_port", "logging_steps", "adaptor_name", "resume"}
        & shown.keys()
    )
    metrics = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["hparams/loss", "hparams/eval_loss"]
    assert [read.Scalars(metric.name.tag)[0].value for metric in metrics] == [2.0, 1.5]


def test_interval_of_a_bucket_is_kept_but_no_curve(reporter: Reporter, tmp_path: Path) -> None:
    values = {"eval/loss": 1.5, "eval/loss_t00_10": 0.5, "eval/loss_ci95_t00_10": 0.1}
    reporter.metrics(5, values)
    assert board(tmp_path, reporter).Tags()["scalars"] == ["eval/loss", "eval/loss_t00_10"]
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 5, **values}]


def test_a_figure_that_never_moves_is_no_curve(reporter: Reporter, tmp_path: Path) -> None:
    reporter.metrics(5, {"eval/loss": 1.5, "eval/documents": 60.0, "loss": 2.0})
    assert board(tmp_path, reporter).Tags()["scalars"] == ["eval/loss", "train/loss"]
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 5, "eval/loss": 1.5, "eval/documents": 60.0, "loss": 2.0}
    ]
