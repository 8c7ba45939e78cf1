"""Runs that begin at step 0 with the weights and the optimizer of another run's checkpoint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from faults.compare import tensors_of
from faults.forks import Forks
from helpers.scenes import Scene
from helpers.support import try_out_here
from safetensors.torch import load_file, save_file

from plugin import cli
from plugin.assembly.model import base_config
from plugin.assembly.resolve import Facts, resolve
from plugin.base.digests import write_digests
from plugin.config.parse import parse
from plugin.parent import check as parent_check
from plugin.parent.start_from import saved_optimizer
from plugin.run.folder import RunFolder
from plugin.run.state import read_state
from plugin.training.lr_schedule import rate
from plugin.training.optimizer import optimizer_tensors, trained_weights
from plugin.worker.checkpoints import restore_training
from plugin.worker.load import Training, build_training, load_data
from plugin.worker.train import begin

STEP = 6


@pytest.fixture(scope="module")
def job(tiny_config: Path, pairs_file: Path) -> dict[str, object]:
    values = {"model_config": tiny_config, "dataset_name": pairs_file, "max_length": 64}
    values |= {"train_steps": 2 * STEP, "save_steps": STEP, "learning_rate": 3e-3}
    return values | {"learning_rate_schedule": "wsd", "fuse_model": "false", "train_device": "cpu"}


def words(values: dict[str, object]) -> list[object]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def base(forks: Forks, job: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Return a stable run: its rate is constant up to the middle checkpoint."""
    done = forks.run(tmp_path_factory.mktemp("base") / "base", *words(job))
    assert done.code == 0, done.err
    return done


@pytest.fixture
def begun(base: Scene, job: dict[str, object], tmp_path: Path) -> Callable[[Path, bool], Training]:
    """Return the parts of a run before its first update: begun from a checkpoint, or resumed."""

    def make(checkpoint: Path, resumed: bool) -> Training:
        texts = {name: str(value) for name, value in job.items() if name != "model_config"}
        params = parse({**texts, "start_from": str(checkpoint), "run_dir": str(tmp_path)}).params
        state = read_state(checkpoint)
        data = load_data(params, RunFolder(base.folder), 1, state if resumed else None)
        config = base_config(params, data.tokenizer)
        accelerator = Accelerator(cpu=True)
        facts = Facts(params=params, config=config, data=data, device=torch.device("cpu"), ranks=1)
        own = checkpoint if resumed else None
        training = build_training(params, data, resolve(facts), accelerator, print, own)
        if resumed:
            restore_training(checkpoint, training.optimizer, training.scheduler, state.step)
        else:
            assert begin(params, training, print).done == 0
        return training

    return make


def update(training: Training, step: int) -> list[torch.Tensor]:
    """Make one update by the batch of `step`, at one rate; return all weights."""
    built = training.steps(step)
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-3
    for micro_batch in built.micro_batches:
        (built.loss(training.module(micro_batch.batch)) / built.count).backward()
    training.optimizer.step()
    return [weight.detach().clone() for weight in trained_weights(training.optimizer)]


def test_start_has_the_weights_and_moments_of_its_checkpoint(
    base: Scene, begun: Callable[[Path, bool], Training]
) -> None:
    checkpoint = base.folder / f"checkpoint-{STEP}"
    training = begun(checkpoint, False)
    saved = load_file(checkpoint / "optimizer.safetensors")
    found = optimizer_tensors(training.optimizer)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "exp_avg" in name)
    weights = load_file(checkpoint / "model.safetensors")
    own = training.model.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    assert training.scheduler.get_last_lr()[0] < 3e-3, "the warm-up begins anew"


def test_first_update_equals_that_of_a_resumed_run(
    base: Scene, begun: Callable[[Path, bool], Training]
) -> None:
    checkpoint = base.folder / f"checkpoint-{STEP}"
    new, resumed = (update(begun(checkpoint, flag), STEP) for flag in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(new, resumed, strict=True))
    fresh = begun(checkpoint, False)
    fresh.optimizer.state.clear()
    without = update(fresh, STEP)
    assert any(not torch.equal(one, other) for one, other in zip(new, without, strict=True))


def test_decay_starts_from_a_stable_point(
    forks: Forks, base: Scene, job: dict[str, object], tmp_path: Path
) -> None:
    """The run folder stands for its newest intact checkpoint, which run.json and card name."""
    source = Path(shutil.copytree(base.folder, tmp_path / "stable"))
    (source / f"checkpoint-{2 * STEP}" / "optimizer.safetensors").unlink()
    decay = {name: value for name, value in job.items() if name != "model_config"}
    decay |= {"start_from": source, "learning_rate_schedule": "one_minus_sqrt"}
    decay |= {"warmup_ratio": 0, "logging_steps": 1, "fuse_model": "true"}
    done = forks.run(tmp_path / "decay", *words(decay))
    assert done.code == 0, done.err
    assert f"checkpoint-{2 * STEP} is skipped: optimizer.safetensors is missing" in done.err
    assert done.json("run.json")["params"]["start_from"] == str(source / f"checkpoint-{STEP}")
    card = (done.folder / "fused" / "README.md").read_text()
    assert f"checkpoint-{STEP} of run stable, with its optimizer" in card
    rates = [line["learning_rate"] for line in done.trace() if "loss" in line]
    wanted = [
        3e-3 * rate("one_minus_sqrt", k, total=2 * STEP, warmup=0, decay=1) for k in range(2 * STEP)
    ]
    assert rates == pytest.approx(wanted)
    saved, first = (
        load_file(folder / "optimizer.safetensors")["0.step"].item()
        for folder in (done.last_checkpoint(), source / f"checkpoint-{STEP}")
    )
    assert (first, saved) == (STEP, 3 * STEP), "moments are carried over, with their count"


def test_resumed_decay_equals_the_unbroken_one(
    forks: Forks, base: Scene, job: dict[str, object], tmp_path: Path
) -> None:
    decay = {name: value for name, value in job.items() if name != "model_config"}
    decay |= {"start_from": base.folder / f"checkpoint-{STEP}"}
    whole = forks.run(tmp_path / "whole", *words(decay))
    again = Path(shutil.copytree(whole.folder, tmp_path / "again"))
    resumed = forks.run(again, *words(decay), "--resume", again / f"checkpoint-{STEP}")
    assert (whole.code, resumed.code) == (0, 0), resumed.err
    last = f"checkpoint-{2 * STEP}"
    assert tensors_of(again / last) == tensors_of(whole.folder / last)


def broken(checkpoint: Path) -> Path:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    return checkpoint


def without(checkpoint: Path, name: str) -> Path:
    (checkpoint / name).unlink()
    return checkpoint


def adapters(checkpoint: Path) -> Path:
    (checkpoint / "adapter_config.json").write_text("{}")
    write_digests(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("change", "more", "error"),
    [
        (
            broken,
            {},
            "start_from: expected an intact checkpoint with its optimizer, got .*"
            "model.safetensors is not what was written",
        ),
        (
            lambda path: without(path, "optimizer.safetensors"),
            {},
            "start_from: .*optimizer.safetensors is missing",
        ),
        (lambda path: without(path, "state.json"), {}, "start_from: .*state.json is missing"),
        (adapters, {}, "start_from: .*it holds an adapter, not a full model"),
        (lambda path: path / "no", {}, "start_from: expected a run folder or a checkpoint of one"),
        (
            lambda path: path,
            {"optim": "adamw_8bit"},
            "optim: expected adamw with this start_from, got adamw_8bit",
        ),
        (lambda path: path, {"lora": "true"}, "lora: expected a model_name, got start_from"),
        (
            lambda path: path,
            {"tokenizer_name": "t"},
            "tokenizer_name: expected nothing with start_from",
        ),
        (
            lambda path: path,
            {"model_name": "m"},
            "model_name: expected one of .*, got model_name and start_from",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_unusable_start_is_refused_by_name(
    change: Callable[[Path], Path],
    more: dict[str, object],
    error: str,
    command: str,
    base: Scene,
    job: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parent_check, "_try_out", try_out_here)
    copy = Path(shutil.copytree(base.folder / f"checkpoint-{STEP}", tmp_path / "checkpoint-1"))
    values = {name: value for name, value in job.items() if name != "model_config"}
    values |= {"start_from": change(copy), **more}
    values |= {"run_dir": tmp_path / "run"}
    assert cli.main([command, *map(str, words(values))]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error[")]
    assert re.search(error, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"0.exp_avg", "0.step"}, "adamw"),
        ({"0.state1", "0.qmap1", "1.step"}, "adamw_8bit"),
        (set[str](), ""),
    ],
)
def test_saved_optimizer_is_known_by_its_states(names: set[str], kind: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "o.safetensors")
    assert saved_optimizer(tmp_path / "o.safetensors") == kind
