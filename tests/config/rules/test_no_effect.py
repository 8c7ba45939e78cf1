"""Parameters without an effect: the reason of each, the same for the form and for a job's notes."""

from __future__ import annotations

from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.config.methods import METHODS, methods_with
from plugin.config.params import SCHEMA, Params
from plugin.config.parse import draft, parse
from plugin.config.rules.no_effect import inapplicable, without_effect

JOB = {"model_name": "m", "dataset_name": "d"}


def another(name: str) -> object:
    """Return a value of a parameter that is not its default."""
    kind, default = SCHEMA[name], SCHEMA[name]["default"]
    if kind.get("type") == "boolean":
        return not default
    if "enum" in kind:
        return next(word for word in kind["enum"] if word != default)
    if kind.get("type") == "string":
        return {"loss_weight_type": "uniform", "gpu_ids": "0"}.get(name, "x")
    narrow = {"rope_theta": 2, "eval_share": 0.2, "hang_timeout_s": 60}
    return narrow.get(name, 0.5 if kind.get("type") == "number" else 2)


def reasons(**values: Any) -> dict[str, str]:
    return without_effect(parse({**JOB, **values}).params)


@pytest.mark.parametrize("method", METHODS)
def test_options_of_other_methods_have_the_reason(method: str) -> None:
    found = reasons(training_method=method)
    for name in SCHEMA:
        if (able := methods_with(name)) and method not in able:
            assert found[name].startswith(f"belongs to training_method {' or '.join(able)};")
        if method in able:
            assert "training_method" not in found.get(name, "")


@pytest.mark.parametrize("name", SCHEMA)
def test_a_set_parameter_is_noted_exactly_where_it_has_a_reason(name: str) -> None:
    """Every parameter, alone in a job of every method that accepts it."""
    accepted = 0
    for method in METHODS:
        try:
            parsed = parse({**JOB, "training_method": method, name: another(name)})
        except JobError:  # one that needs another parameter as well
            continue
        accepted += 1
        noted = [note for note in parsed.notes if note.startswith(f"{name}: ")]
        reason = without_effect(parsed.params).get(name)
        assert noted == ([f"{name}: {reason}"] if reason else [])
    assert accepted or name in NEEDS_ANOTHER


# Refused alone, whatever the method is.
NEEDS_ANOTHER = {
    *("model_config", "start_from", "init_from", "streaming", "train_tokens", "num_machines"),
    *("batch_warmup_tokens", "objective", "block_schedule", "load_in_4bit", "machine_rank"),
}


def test_a_default_without_effect_is_no_note() -> None:
    params = Params.model_validate(JOB)
    assert {"lora_r", "block_size", "mask_rate", "decay_ratio"} <= set(without_effect(params))
    assert inapplicable(params) == []


def test_reasons_go_with_what_they_name() -> None:
    assert reasons()["lora_r"] == "has no effect without lora."
    assert "lora_r" not in reasons(lora=True)
    assert reasons()["mask_rate"] == "has no effect without objective mlm."
    mlm = reasons(objective="mlm", training_stage="pretrain")
    assert "mask_rate" not in mlm
    assert mlm["t_min"] == "has no effect with objective mlm."
    assert reasons(num_train_epochs=2)["train_steps"] == "ignored, because num_train_epochs is 2."
    assert reasons(warmup_steps=5)["warmup_ratio"] == "ignored, because warmup_steps is 5."
    assert "eos_block_length" in reasons(eos_policy="single")
    assert "eos_block_length" not in reasons()
    assert reasons()["objective"] == "belongs to training_stage pretrain."


def test_drafts_of_wrong_fields_have_their_defaults() -> None:
    found = draft({"batch_size": "many", "t_min": "0.5", "colour": "red"})
    assert (found.params.batch_size, found.params.t_min) == (4, 0.5)
    assert found.wrong == {"batch_size", "colour"}
    fields = [problem.field for problem in found.problems]
    assert fields == ["colour", "batch_size", "dataset_name", "model_name"]
