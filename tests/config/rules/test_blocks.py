"""Parameters of block diffusion: schedules read and refused, and options that it cannot have."""

from __future__ import annotations

import json

import pytest

from plugin.base.errors import JobError
from plugin.config.parse import Parsed, parse
from plugin.config.rules.blocks import MOST_PAIRS, schedule_pairs

BASE = {"model_name": "m", "dataset_name": "d.jsonl", "training_method": "block"}


def parsed(**values: object) -> Parsed:
    return parse({**BASE, **values})


def problems(**values: object) -> list[str]:
    with pytest.raises(JobError) as caught:
        parsed(**values)
    assert caught.value.code == 2
    return [f"{problem.field}: {problem.expected}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"ar_loss_weight": 0.2}, "ar_loss_weight: clean_context causal as well"),
        ({"block_size": 1025}, "block_size: at most max_length (1024)"),
        ({"block_size": 0}, "block_size: 'auto' or an integer >= 1 and <= 1048576"),
        ({"block_views": 3}, "block_views: an integer >= 1 and <= 2"),
        ({"noise_warmup_steps": 1001}, "noise_warmup_steps: at most the 1000 steps of the run"),
        ({"packing": "off"}, "packing: auto or on with block"),
        ({"attn_implementation": "eager"}, "attn_implementation: auto or sdpa with block"),
        ({"attn_implementation": "varlen"}, "attn_implementation: auto or sdpa with block"),
        ({"block_schedule": "[[0, 4]]"}, "block_schedule: training_stage pretrain as well"),
    ],
)
def test_what_does_not_fit_is_one_line_by_name(values: dict[str, object], problem: str) -> None:
    assert problems(**values) == [problem]


def test_objective_mlm_is_refused() -> None:
    found = problems(objective="mlm", training_stage="pretrain")
    assert found == ["objective: mdlm with block"]


def test_the_rules_are_of_block_diffusion_alone() -> None:
    other = {"training_method": "llada", "packing": "off", "noise_warmup_steps": 10**6}
    notes = parsed(**other, ar_loss_weight=0.2, block_size=4096).notes
    assert [note.partition(":")[0] for note in notes] == [
        "block_size",
        "noise_warmup_steps",
        "ar_loss_weight",
    ]
    assert all("belongs to training_method block" in note for note in notes)


def test_next_token_loss_is_taken_with_a_causal_context() -> None:
    params = parsed(ar_loss_weight="0.2", clean_context="causal", noise_warmup_steps=1000).params
    assert (params.ar_loss_weight, params.clean_context) == (0.2, "causal")


def test_options_without_effect_are_noted() -> None:
    notes = parsed(complementary=True, eos_policy="batch", mask_count="exact").notes
    named = sorted(note.partition(":")[0] for note in notes)
    assert named == ["complementary", "eos_policy", "mask_count"]
    assert not parsed(mask_count="exact", mask_half_life=0).notes


# --- schedules

PACKS = {"training_stage": "pretrain"}


@pytest.mark.parametrize(
    "value", ["[[0, 4], [1000, 16]]", [["0", "4"], ["1000", "16"]], [[0, 4], [1000, 16]]]
)
def test_a_schedule_is_text_or_a_list_of_a_file(value: object) -> None:
    params = parsed(**PACKS, block_schedule=value, block_size=16).params
    assert schedule_pairs(params.block_schedule) == [(0, 4), (1000, 16)]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "4",
        "[[0]]",
        "[[0, 4, 5]]",
        "[[0, 0]]",
        "[[0, -4]]",
        "[[0, 4.5]]",
        "[[0, true]]",
        '[[0, "x"]]',
        "[[0, 4]",
        "null",
        json.dumps([[number, 4] for number in range(MOST_PAIRS + 1)]),
        "[" * 5000,
        f"[[0, {10**400}]]",
    ],
)
def test_a_schedule_of_anything_else_is_refused(text: str) -> None:
    assert schedule_pairs(text) is None
    (problem,) = problems(**PACKS, block_schedule=text)
    assert problem.startswith("block_schedule: pairs of tokens and block size")


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        ("[[5, 4]]", {}, "tokens that rise from 0"),
        ("[[0, 4], [9, 8], [7, 16]]", {}, "tokens that rise from 0"),
        ("[[0, 4], [0, 8]]", {}, "tokens that rise from 0"),
        ("[[0, 4096], [9, 8]]", {}, "at most max_length (1024)"),
        ("[[0, 4], [9, 8]]", {"block_size": 4}, "block_size (4) as its last size"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(
    text: str, more: dict[str, object], expected: str
) -> None:
    assert problems(**PACKS, block_schedule=text, **more) == [f"block_schedule: {expected}"]


def test_a_list_of_another_kind_is_refused_as_one() -> None:
    (problem,) = problems(**PACKS, block_schedule=[["0", ["4"]]])
    assert problem.startswith("block_schedule: pairs of tokens")
