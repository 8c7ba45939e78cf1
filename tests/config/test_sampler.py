"""Sampler settings: every bound and contradiction by name, and options laid over saved ones."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.config.sampler import (
    UNTYPED,
    SamplerSettings,
    add_sampler_options,
    changed,
    sampler_overrides,
)


def overrides(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_sampler_options(parser)
    return sampler_overrides(parser.parse_args(words))


def test_every_setting_has_an_option() -> None:
    typed = {
        "max_new_tokens": 64, "block_length": 16, "steps": 8, "strategy": "maskgit_plus",
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "threshold": 0.9, "cfg": 1.5,
        "cfg_prompt": "dropped", "cache": "dual", "seed": 3,
    }  # fmt: skip
    words = [word for name, value in typed.items() for word in (f"--{name}", str(value))]
    assert overrides(*words) == typed
    others = {"factor": 1.0, "alg_temp": 0.2, "entropy_bound": 0.1}
    for name, value in others.items():
        assert overrides(f"--{name}", str(value)) == {name: value}
    assert {*typed, *others, *UNTYPED} == {field.name for field in fields(SamplerSettings)}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "0", "a whole number from 1 up"),
        ("steps", "2.5", "a whole number from 1 up"),
        ("top_p", "0", "a number above 0 and up to 1"),
        ("seed", "-1", "a whole number from 0 and up to 9223372036854775807"),
        ("top_p", "1.01", "a number above 0 and up to 1"),
        ("top_k", "-1", "a whole number from 0 up"),
        ("threshold", "1", "a number above 0 and below 1"),
        ("threshold", "nan", "a number above 0 and below 1"),
        ("temperature", "inf", "a number from 0 up"),
        ("factor", "0", "a number above 0"),
        ("cache", "both", "one of none, prompt, prefix, dual"),
        ("strategy", "greedy", "one of low_confidence, random, topk_margin, entropy, maskgit_plus"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, value: str, expected: str) -> None:
    with pytest.raises(JobError) as raised:
        overrides(f"--{name}={value}")
    (problem,) = raised.value.problems
    assert str(problem).startswith(f"{name}: expected {expected}")
    assert f"got {value}" in str(problem)


def test_all_wrong_values_are_named_together() -> None:
    with pytest.raises(JobError) as raised:
        overrides("--steps", "x", "--cache", "y", "--top_p", "2")
    assert sorted(problem.field for problem in raised.value.problems) == ["cache", "steps", "top_p"]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("--threshold .9 --factor 1", "factor"),
        ("--threshold .9 --entropy_bound .1 --strategy low_confidence", "entropy_bound"),
        ("--threshold .9 --strategy entropy", "strategy"),
        ("--factor 1 --strategy random", "strategy"),
        ("--entropy_bound .1 --strategy topk_margin", "strategy"),
        ("--alg_temp .5 --threshold .9", "alg_temp"),
        ("--alg_temp .5 --strategy origin", "alg_temp"),
        ("--top_p .9", "temperature"),
        ("--top_k 5", "temperature"),
        ("--cfg_prompt dropped", "cfg"),
    ],
)
def test_contradictions_are_refused(words: str, field: str) -> None:
    """A setting that would change nothing is one too: nothing is ignored in silence."""
    with pytest.raises(JobError) as raised:
        overrides(*words.split())
    assert field in [problem.field for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"threshold": 0.8, "steps": 16}),
        ({"entropy_bound": 0.1}, {"threshold": None, "strategy": "entropy"}),
        ({"factor": 1.0}, {"threshold": None, "factor": 1.0, "strategy": "low_confidence"}),
        ({"block_length": 8}, {"block_length": 8, "steps": 8}),
        ({"block_length": 8, "steps": 2}, {"block_length": 8, "steps": 2}),
        ({"steps": 4}, {"block_length": 32, "steps": 4}),
    ],
)
def test_what_is_given_lies_over_what_was_saved(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = changed(SamplerSettings(threshold=0.8, steps=16), given)
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_saved_temperature_allows_a_given_top_p() -> None:
    assert changed(SamplerSettings(temperature=0.7), {"top_p": 0.9}).top_p == 0.9


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"cache": "x"}, {"threshold": 1.5}])
def test_a_file_with_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        SamplerSettings(**wrong)
