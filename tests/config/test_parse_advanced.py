"""The form's `advanced` field: the parameters without a field of their own."""

from __future__ import annotations

import pytest

from plugin.base.errors import JobError
from plugin.config.parse import parse

NEEDED = {"dataset_name": "d", "model_name": "m"}


def test_each_line_is_a_parameter_and_wins_over_the_form() -> None:
    params = parse(
        {
            **NEEDED,
            "batch_size": 4,
            "advanced": "weight_decay: 0.1\n\n batch_size : 8 \ninput_template: {{ a }}: {{ b }}",
        }
    ).params
    assert (params.weight_decay, params.batch_size, params.input_template) == (
        0.1,
        8,
        "{{ a }}: {{ b }}",
    )


def test_an_empty_field_and_an_empty_value_mean_not_given() -> None:
    assert (
        parse({**NEEDED, "advanced": ""}).params
        == parse({**NEEDED, "advanced": "seed:"}).params
        == parse(NEEDED).params
    )


def test_mistakes_in_it_are_reported_with_all_others() -> None:
    with pytest.raises(JobError) as refused:
        parse(
            {
                **NEEDED,
                "batch_size": 0,
                "advanced": "weight_decay 0.1\nseed: often\nweight_decai: 1",
            }
        )
    assert [problem.field for problem in refused.value.problems] == [
        "advanced",
        "weight_decai",
        "batch_size",
        "seed",
    ]
