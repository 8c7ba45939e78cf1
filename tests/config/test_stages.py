"""Stages of a file: layers of values, beginnings, names, and problems of all stages together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.config.stages import Stage, lay_over, parse_stages, with_typed

RUN = Path("/runs/r")
TOP = {"model_config": "m.json", "dataset_name": "d", "tokenizer_name": "t"}


def stages(
    *own: object, typed: Mapping[str, Any] | None = None, files: Any = None, **top: Any
) -> list[Stage]:
    read = (files or {}).__getitem__
    return parse_stages({**TOP, **top, "stages": list(own)}, typed or {}, RUN, read)


def problems(*own: object, **more: Any) -> list[str]:
    with pytest.raises(JobError) as refused:
        stages(*own, **more)
    return [problem.field for problem in refused.value.problems]


def test_later_stages_start_from_the_stage_before() -> None:
    one, two, three = (stage.parsed.params for stage in stages({}, {"name": "b"}, {}))
    assert (one.model_config_file, one.tokenizer_name, one.start_from) == ("m.json", "t", "")
    assert (two.model_config_file, two.tokenizer_name) == ("", "")
    assert two.start_from == "/runs/r/1-stage-1"
    assert three.start_from == "/runs/r/2-b"
    assert (one.run_dir, two.run_dir) == ("/runs/r/1-stage-1", "/runs/r/2-b")


def test_stage_may_name_its_own_beginning() -> None:
    found = stages({}, {"model_name": "previous"}, {"start_from": "s"}, {"model_name": "m"})
    _, two, three, four = (stage.parsed.params for stage in found)
    assert two.model_name == "/runs/r/1-stage-1/fused"
    assert (three.start_from, four.model_name, four.start_from) == ("s", "m", "")


def test_rooted_parameters_name_the_model_of_the_chain() -> None:
    rooted = [stage.rooted for stage in stages({}, {}, {"model_name": "m"}, {})]
    assert [one.model_config_file for one in rooted] == ["m.json", "m.json", "", ""]
    assert [one.tokenizer_name for one in rooted] == ["t", "t", "", ""]
    assert [one.model_name for one in rooted] == ["", "", "m", "m"]


def test_stage_lies_over_the_file_and_typed_values_over_both() -> None:
    own = ({"batch_size": 2, "max_length": 8}, {"max_length": 16})
    found = stages(*own, batch_size=3, typed={"max_length": "32", "model_config": "n.json"})
    first, second = (stage.parsed.params for stage in found)
    assert (first.batch_size, first.max_length, first.model_config_file) == (2, 32, "n.json")
    assert (second.batch_size, second.max_length, second.model_config_file) == (3, 32, "")


def test_seed_differs_by_stage_unless_it_is_set() -> None:
    seeds = [stage.parsed.params.seed for stage in stages({}, {}, {"seed": 7}, {}, seed="5")]
    assert seeds == [5, 6, 7, 8]


def test_chain_of_files_is_a_list_of_configs() -> None:
    files = {"wiki.yaml": {"max_length": 99, "batch_size": 9, "model_name": "w"}}
    own = {"config": "wiki.yaml", "model_name": "previous", "batch_size": 8}
    _, second = (stage.parsed.params for stage in stages({}, own, files=files))
    assert (second.max_length, second.batch_size) == (99, 8)
    assert second.model_name == "/runs/r/1-stage-1/fused"


@pytest.mark.parametrize(
    ("lower", "upper", "wanted"),
    [
        ({"num_train_epochs": 1}, {"train_steps": 5}, {"train_steps": 5}),
        ({"max_steps": 5}, {"train_tokens": 9}, {"train_tokens": 9}),
        ({"train_tokens": 9}, {"num_train_epochs": 1}, {"num_train_epochs": 1}),
        ({"train_steps": 1, "seed": 2}, {"max_steps": 5}, {"seed": 2, "max_steps": 5}),
    ],
)
def test_length_of_an_upper_layer_replaces_every_lower_one(
    lower: dict[str, int], upper: dict[str, int], wanted: dict[str, int]
) -> None:
    assert lay_over(lower, upper) == wanted


@pytest.mark.parametrize(
    "typed",
    [
        {"batch_size": "2", "model_config": "n.json", "run_dir": "r"},
        {"seed": "5"},
        {"seed": "5", "max_steps": "4"},
        {"train_tokens": "7000"},
        {"num_train_epochs": "2", "adaptor_name": "mine"},
    ],
)
def test_file_with_typed_values_written_in_means_the_same(typed: dict[str, str]) -> None:
    files = {"wiki.yaml": {"train_tokens": 900, "batch_size": 9, "model_name": "w"}}
    own = [
        {"seed": 3, "num_train_epochs": 1},
        {"config": "wiki.yaml"},
        {"name": "c", "init_from": ""},
    ]
    content = {**TOP, "training_stage": "pretrain", "train_steps": 50, "stages": own}
    whole = with_typed(content, typed, files.__getitem__)
    assert whole.get("run_dir") == typed.get("run_dir")
    assert whole.get("adaptor_name") == typed.get("adaptor_name")
    mine = parse_stages(whole, {}, RUN, {}.__getitem__)
    wanted = parse_stages(content, typed, RUN, files.__getitem__)
    assert [one.rooted for one in mine] == [one.rooted for one in wanted]
    assert [(one.name, one.parsed) for one in mine] == [(one.name, one.parsed) for one in wanted]


def test_folder_typed_over_stages_leaves_them_as_they_are() -> None:
    content = {**TOP, "stages": [{"config": "wiki.yaml"}]}
    assert with_typed(content, {"run_dir": "r"}, {}.__getitem__) == content | {"run_dir": "r"}


def test_wrong_stage_under_typed_values_is_refused_by_name() -> None:
    content = {**TOP, "stages": [{"name": "../x"}, {"max_length": 0}]}
    with pytest.raises(JobError) as refused:
        with_typed(content, {"batch_size": "2"}, {}.__getitem__)
    fields = [problem.field for problem in refused.value.problems]
    assert fields == ["stages[1].name", "stages[2].max_length"]


@pytest.mark.parametrize(
    ("own", "fields"),
    [
        (({}, {"max_length": 0}, {"t_min": 2}), ["stages[2].max_length", "stages[3].t_min"]),
        (({}, ["max_length"]), ["stages[2]"]),
        (({"name": "../x"},), ["stages[1].name"]),
        (({"run_dir": "x"},), ["stages[1].run_dir"]),
        (({"stages": []},), ["stages[1].stages"]),
        (({}, {"optim": "adamw_8bit"}), ["stages[2].optim"]),
        (({"fuse_model": False}, {"model_name": "previous"}), ["stages[2].model_name"]),
        ((), ["stages"]),
    ],
)
def test_problems_name_their_stage(own: tuple[object, ...], fields: list[str]) -> None:
    assert problems(*own) == fields


def test_adapter_is_no_start_of_a_next_stage() -> None:
    lora = {"lora": True, "model_name": "m", "model_config": None}
    with pytest.raises(JobError) as refused:
        parse_stages({"dataset_name": "d", "stages": [lora, {}]}, {}, RUN, {}.__getitem__)
    assert [problem.field for problem in refused.value.problems] == ["stages[2].start_from"]


def test_mistake_of_the_full_file_is_named_once() -> None:
    assert problems({}, {}, {"max_length": 0}, batch_size=0) == [
        "batch_size",
        "stages[3].max_length",
    ]
