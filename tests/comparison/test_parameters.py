"""Settings that differ, and whether evaluation losses compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import LINES, evaluated, write_run

from plugin.comparison.parameters import (
    Comparability,
    comparability,
    differing,
    objective_difference,
)
from plugin.comparison.runs import Run, read_runs

Pair = Callable[..., list[Run]]
LLADA = {"training_method": "llada"}
DREAM = {"training_method": "dream"}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Return call({parameters of a}, {parameters of b}) -> the two runs."""

    def call(*params: dict[str, Any]) -> list[Run]:
        folders = [
            write_run(tmp_path / name, **how) for name, how in zip("abcd", params, strict=False)
        ]
        return read_runs([str(folder) for folder in folders])

    return call


def compared(runs: list[Run]) -> Comparability:
    return comparability(runs)


def test_only_what_differs_is_listed(pair: Pair) -> None:
    runs = pair({"learning_rate": 1e-3, "lora": True}, {"learning_rate": 1e-4}, {"lora": True})
    assert differing(runs) == {
        "learning_rate": {"a": 1e-3, "b": 1e-4, "c": 2e-5},
        "lora": {"a": True, "b": False, "c": True},
    }


def test_equal_runs_differ_in_nothing(pair: Pair) -> None:
    assert differing(pair({}, {})) == {}


def test_what_a_launcher_chose_counts(pair: Pair, tmp_path: Path) -> None:
    from helpers.run_folders import done

    runs = pair({}, {"result": done(effective={"batch_size": 8})})
    assert differing(runs) == {"batch_size": {"a": 4, "b": 8}}


def test_data_and_environment_that_differ_are_listed(pair: Pair) -> None:
    runs = pair({}, {"data": "other", "unfinished": True})
    found = differing(runs)
    assert found["data.digest"] == {"a": "digest", "b": "other"}
    assert found["data.eval.documents"] == {"a": 40, "b": None}
    assert "environment.devices" not in found


def test_runs_of_one_evaluation_compare(pair: Pair) -> None:
    """Neither the learning rate nor the time sampling, which an evaluation sets, is a part of it."""
    found = compared(pair({"learning_rate": 1e-3}, {"t_sampling": "iid", "batch_size": 2}))
    assert found == Comparability(held_out=True, objective=True)
    assert found.holds


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": "other"}, "data: a digest, b other"),
        ({"max_length": 64}, "max_length: a 1024, b 64"),
        ({"train_turns": "all"}, "train_turns: a last, b all"),
        ({"metrics": (*LINES, evaluated(30, 2.0, documents=7.0))}, "documents: a 40, b 7"),
    ],
)
def test_other_held_out_data_is_said(pair: Pair, changes: dict[str, Any], reason: str) -> None:
    found = compared(pair({}, changes))
    assert (found.held_out, found.objective) == (False, True)
    text = f"evaluated on different held-out data ({reason}): losses do not compare"
    assert text in found.reasons


def test_another_seed_leaves_the_held_out_rows_open(pair: Pair) -> None:
    found = compared(pair({"seed": 1}, {"seed": 2}, {"seed": 2}))
    assert (found.held_out, found.objective, found.holds) == (None, True, False)
    (reason,) = found.reasons
    assert "seed: a 1, b and c 2" in reason


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ({}, LLADA, "training_method: a bert, b llada"),
        (LLADA, LLADA | {"noise_schedule": "cosine"}, "noise_schedule: a linear, b cosine"),
        (LLADA, LLADA | {"loss_norm": "token"}, "loss_norm: a sequence, b token"),
        (DREAM, DREAM | {"loss_weight_type": "uniform"}, "loss_weight_type: a cart"),
        ({}, {"objective": "mlm", "training_stage": "pretrain"}, "objective: a mdlm, b mlm"),
    ],
)
def test_another_objective_is_said(
    pair: Pair, one: dict[str, Any], other: dict[str, Any], reason: str
) -> None:
    runs = pair(one, other)
    found = compared(runs)
    assert not found.objective
    assert any(f"different objective ({reason}" in text for text in found.reasons), found.reasons
    note = objective_difference(runs)
    assert reason in note
    assert note.endswith("training losses do not compare")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LLADA, LLADA | {"loss_norm": "sequence"}),  # what auto is
        (LLADA, LLADA | {"loss_weight_type": "uniform"}),  # an option of another method
        (LLADA, LLADA | {"mask_rate": 0.5}),  # an option of another objective
        (LLADA | {"eos_policy": "batch"}, LLADA | {"eos_policy": "batch", "eos_block_length": 8}),
    ],
)
def test_settings_without_effect_are_no_other_objective(
    pair: Pair, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert compared(pair(one, other)).holds


def test_another_tokenizer_is_other_data(pair: Pair) -> None:
    """A truncation that the last call of a tokenizer left in its file is no difference."""
    runs = pair({}, {}, {})
    texts = ('{"model": {"b": 2}}', '{"model": {"b": 1}}', '{"truncation": 3, "model": {"b": 1}}')
    for run, text in zip(runs, texts, strict=True):
        (run.folder / "fused").mkdir()
        (run.folder / "fused" / "tokenizer.json").write_text(text)
    assert compared(runs[1:]).holds
    assert "(tokenizer: a " in compared(runs).reasons[0]
