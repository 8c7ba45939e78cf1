"""Checks between parameters: each mistake alone is one problem, which names what is expected."""

from __future__ import annotations

import pytest

from plugin.base.errors import JobError
from plugin.config.parse import parse
from plugin.config.rules.checks import MOST_TEXT

JOB = {"model_name": "m", "dataset_name": "d"}
STREAM = {"streaming": True, "training_stage": "pretrain"}
MACHINES = {"num_machines": 2, "main_process_ip": "10.0.0.1", "main_process_port": 29500}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"batch_size": 8192, "gradient_accumulation_steps": 4},
            "batch_size: expected at most 16384 documents a step on each device, got 32768.",
        ),
        (
            {"compile": "on", "recompute": "selective"},
            "recompute: expected auto, none or full with compile on, got selective.",
        ),
        (
            STREAM | {"packing": "off"},
            "streaming: expected packing auto or on as well, got packing off.",
        ),
        (
            STREAM | {"eval_strategy": "epoch"},
            "eval_strategy: expected no or steps with streaming, got epoch.",
        ),
        (
            STREAM | {"num_train_epochs": 2},
            "num_train_epochs: expected train_steps or train_tokens with streaming, got 2.",
        ),
        (
            {"machine_rank": 1},
            "machine_rank: expected less than num_machines (1), got 1.",
        ),
        (
            MACHINES | {"main_process_port": "auto"},
            "main_process_port: expected a port that every machine names, got auto.",
        ),
        (
            MACHINES | {"main_process_ip": "localhost"},
            "main_process_ip: expected machine 0's address in the network, got localhost.",
        ),
        (
            {"training_method": "block", "cuda_graphs": True},
            "cuda_graphs: expected false with block, got true.",
        ),
        (
            {"input_template": "x" * (MOST_TEXT + 1)},
            "input_template: expected at most 100000 characters, got 100001 characters.",
        ),
        (
            {"wandb_project": "hf_" + "a1B2" * 9},
            "wandb_project: expected no key in a parameter, got [redacted].",
        ),
        (
            {"parallel": "zero2", "optim": "adamw_8bit"},
            "parallel: expected optim adamw as well, got zero2 with adamw_8bit.",
        ),
        (
            {"parallel": "zero3", "dtype": "float16"},
            "parallel: expected dtype bfloat16 or float32 as well, got zero3 with float16.",
        ),
        (
            {"parallel": "zero3", "float8": True},
            "parallel: expected float8 false as well, got zero3 with float8.",
        ),
        ({"rope_theta": 1}, "rope_theta: expected 0, or a base above 1, got 1."),
        (
            {"rope_theta": 5e5, "lora": True},
            "rope_theta: expected lora false as well, got lora true.",
        ),
        (
            {"patience": 3, "eval_strategy": "no"},
            "patience: expected eval_strategy steps or epoch as well, got 3 with eval_strategy no.",
        ),
        (
            {"model_name": "", "start_from": "c", "lora": True},
            "lora: expected a model_name, got start_from.",
        ),
        (
            {"model_name": "", "start_from": "c", "tokenizer_name": "t"},
            "tokenizer_name: expected nothing with start_from, got 't'.",
        ),
        (
            {"publish": "best", "eval_strategy": "no"},
            "publish: expected eval_strategy steps or epoch as well, got best with eval_strategy no.",
        ),
        (
            {"publish": "average", "lora": True},
            "publish: expected last or best with lora, got average.",
        ),
    ],
)
def test_what_does_not_fit_is_one_problem(values: dict[str, object], problem: str) -> None:
    with pytest.raises(JobError) as caught:
        parse(JOB | values)
    (found,) = caught.value.problems
    assert str(found).startswith(problem)
    assert caught.value.code == 2
