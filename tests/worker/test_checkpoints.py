"""Checkpoints: resumed to the last bit, removed when old, never listed half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import (
    cpu,
    random_documents,
    rules,
    steps_of,
    tiny_model,
    train_tiny,
    weights,
    word_tokenizer,
)
from safetensors.torch import load_file
from transformers import PreTrainedModel

from plugin.base.digests import why_broken
from plugin.config.sampler import SamplerSettings
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer
from plugin.run.facts import ModelFacts, read_facts
from plugin.run.folder import RunFolder
from plugin.run.state import CheckpointState, read_state
from plugin.training.optimizer import optimizer_tensors, restore_optimizer
from plugin.worker.checkpoints import Contents, save_checkpoint

DOCUMENTS = random_documents(20)
FACTS = ModelFacts(method="bert", sampler=SamplerSettings(steps=8))


def adam(model: PreTrainedModel, **options: Any) -> torch.optim.Optimizer:
    """Return AdamW with two groups of weights, as the worker builds it."""
    wide = [weight for weight in model.parameters() if weight.ndim >= 2]
    narrow = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": wide, "weight_decay": 0.1}, {"params": narrow, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, **options)


def train(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, first: int, count: int
) -> list[float]:
    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    return train_tiny(
        cpu(), model, lambda step: make(first + step), steps=count, optimizer=optimizer
    ).losses


def save(
    folder: Path, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer, keep: int = 2
) -> Path:
    state = CheckpointState(step=step, pass_=0, position=4 * step, seed=7, step_size=4)
    contents = Contents(model, word_tokenizer(["a"]), FACTS, optimizer_tensors(optimizer), {})
    return save_checkpoint(RunFolder(folder), state, contents, keep)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_resumed_run_equals_the_uninterrupted_run(family: str, fused: bool, tmp_path: Path) -> None:
    model = tiny_model(family)
    optimizer = adam(model, fused=fused)
    train(model, optimizer, 0, 3)
    path = save(tmp_path, 3, model, optimizer)
    straight = train(model, optimizer, 3, 2)

    again = load_model(str(path))
    fresh = adam(again, fused=fused)
    restore_optimizer(fresh, load_file(path / "optimizer.safetensors"))
    assert train(again, fresh, 3, 2) == straight
    assert torch.equal(weights(again), weights(model))


def test_an_optimizers_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    model = tiny_model("bert")
    optimizer = adam(model)
    train(model, optimizer, 0, 3)
    saved = optimizer_tensors(optimizer)
    assert len(saved) == 3 * len(list(model.parameters())), "step and two moments each"
    path = save(tmp_path, 3, model, optimizer)
    fresh = adam(tiny_model("bert"))
    restore_optimizer(fresh, load_file(path / "optimizer.safetensors"))
    back = optimizer_tensors(fresh)
    assert saved.keys() == back.keys()
    assert all(
        torch.equal(saved[name], back[name]) and saved[name].dtype == back[name].dtype
        for name in saved
    )
    assert [group["weight_decay"] for group in fresh.param_groups] == [0.1, 0.0]


def test_checkpoint_is_a_full_model_folder_without_pickles(tmp_path: Path) -> None:
    model = tiny_model("bert")
    path = save(tmp_path, 5, model, adam(model))
    assert path == tmp_path / "checkpoint-5"
    assert torch.equal(weights(load_model(str(path))), weights(model))
    assert load_tokenizer(str(path)).mask_token_id == 4
    assert read_facts(path) == FACTS
    assert read_state(path) == CheckpointState(step=5, pass_=0, position=20, seed=7, step_size=4)
    assert not why_broken(path)
    assert {file.suffix for file in path.iterdir()} <= {".safetensors", ".json", ".txt"}


def test_a_scaler_of_fp16_comes_back_with_its_scale(tmp_path: Path) -> None:
    model = tiny_model("bert")
    scaler = torch.amp.GradScaler("cpu", init_scale=3 * 2.0**20, growth_interval=17)
    window, totals = (
        {"loss": 0.1 + 0.2, "steps": 3},
        {"tokens": 2**53, "last_metrics": {"loss": 1 / 3}},
    )
    state = CheckpointState(
        step=9,
        pass_=1,
        position=14,
        seed=7,
        step_size=4,
        window=window,
        totals=totals,
        first_eval={"eval/loss": 2.5},
        last_eval={"eval/loss": 2.0},
        eval_loss=2.0,
        scaler=scaler.state_dict(),
        overflows=4,
    )
    contents = Contents(model, word_tokenizer(["a"]), FACTS, {}, {})
    back = read_state(save_checkpoint(RunFolder(tmp_path), state, contents, 1))
    assert back == state
    fresh = torch.amp.GradScaler("cpu")
    fresh.load_state_dict(back.scaler)
    assert (fresh.state_dict()["scale"], fresh.get_growth_interval()) == (3 * 2.0**20, 17)


def test_broken_checkpoint_does_not_end_the_saving_run(tmp_path: Path) -> None:
    model = tiny_model("bert")
    for step in (2, 4):
        save(tmp_path, step, model, adam(model))
    (tmp_path / "checkpoint-2" / "state.json").unlink()
    (tmp_path / "checkpoint-4" / "state.json").write_text('{"st')
    save(tmp_path, 6, model, adam(model), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-6"]


def test_an_optimizer_that_never_stepped_is_saved_and_restored(tmp_path: Path) -> None:
    model = tiny_model("bert")
    path = save(tmp_path, 1, model, adam(model))
    assert load_file(path / "optimizer.safetensors") == {}
    fresh = adam(tiny_model("bert"))
    restore_optimizer(fresh, load_file(path / "optimizer.safetensors"))
    assert optimizer_tensors(fresh) == {}


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [12, 30]), (9, [2, 4, 12, 30])])
def test_only_the_newest_checkpoints_stay(keep: int, left: list[int], tmp_path: Path) -> None:
    model = tiny_model("bert")
    for step in (2, 4, 12, 30):
        save(tmp_path, step, model, adam(model), keep)
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == [
        f"checkpoint-{step}" for step in left
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"checkpoint-{step}" for step in left
    )


def test_half_a_checkpoint_is_never_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    save(tmp_path, 2, model, adam(model), keep=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plugin.worker.checkpoints.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4, model, adam(model), keep=1)
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["checkpoint-2"]
    assert torch.equal(weights(load_model(str(tmp_path / "checkpoint-2"))), weights(model))
    monkeypatch.undo()
    save(tmp_path, 4, model, adam(model), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"], (
        "the next save clears what was left behind"
    )
