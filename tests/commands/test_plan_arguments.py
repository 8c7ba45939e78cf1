"""Arguments of `plan`: numbers, defaults, and every mistake reported together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.stored_folder import StoredPart, write_stored

from plugin.base.errors import JobError
from plugin.commands.plan.arguments import plan_options

SIZED = ("--flops", "1e18", "--model", "34")


def mistakes(*words: object) -> list[str]:
    with pytest.raises(JobError) as refused:
        plan_options([str(word) for word in words])
    assert all(problem.code == 2 for problem in refused.value.problems)
    return [problem.line for problem in refused.value.problems]


def test_defaults_are_those_of_the_published_runs() -> None:
    request = plan_options(SIZED)
    assert (request.flops, request.model, request.rows) == (1e18, 34, 256)
    assert (request.vocabulary, request.machines, request.devices) == (32_000, 1, 1)
    assert request.law.for_tokens(200) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("--flops", "1e18", "--model", "1000"),
            "model: expected a published size in millions, got '1000'. The nearest published size is 1028.",
        ),
        (
            ("--flops", "1e18", "--model", "big"),
            "model: expected a published size in millions, got",
        ),
        (("--flops", "0"), "flops: expected a number of FLOPs above 0, got '0'."),
        (("--flops", "inf"), "flops: expected a number of FLOPs above 0, got 'inf'."),
        (("--model", "34"), "flops: expected one of flops, tokens and data, got none of them."),
        (
            (*SIZED, "--tokens", "1e9"),
            "flops: expected one of flops, tokens and data, got flops and tokens.",
        ),
        (
            (*SIZED, "--model_config", "c.json"),
            "model: expected either model or model_config, got both.",
        ),
        (
            (*SIZED, "--gpu", "h100"),
            "gpu: expected one of A100-40, A100-80, H100",
        ),
        ((*SIZED, "--mfu", "0.4"), "mfu: expected gpu as well, got no gpu."),
        ((*SIZED, "--gpu", "H100", "--mfu", "40"), "mfu: expected a share from 0 to 1, got '40'."),
        ((*SIZED, "--price_per_hour", "2"), "price_per_hour: expected gpu as well, got no gpu."),
        ((*SIZED, "--num_machines", "0"), "num_machines: expected an integer >= 1 and"),
        (
            (*SIZED, "--num_machines", "300"),
            "batch_size: expected a row for each machine, got 256 rows on 300 machines.",
        ),
        ((*SIZED, "--stochastic_length", "2"), "stochastic_length: expected a share from 0 to 1"),
        ((*SIZED, "--training_method", "lada"), "training_method: expected one of bert"),
        ((*SIZED, "--out", "j.yaml"), "dataset_name: expected the data of the job, got nothing."),
        (
            (*SIZED, "--out", "j.yaml", "--dataset_name", "d", "--num_gpus", "3"),
            "batch_size: expected as many rows on each device, got 256 rows on 3 devices.",
        ),
        ((*SIZED, "--sizes", "34"), "sizes: expected grid as well, got no grid."),
        ((*SIZED, "--png", "a.png"), "png: expected fit as well, got no fit."),
        (("--fit", "runs", "--flops", "1"), "flops: expected no flops with fit, got '1'."),
        (
            ("--grid", "1e18", "--out", "d", "--dataset_name", "d"),
            "sizes: expected sizes for the grid",
        ),
        (
            ("--grid", "1e18,x", "--sizes", "34", "--out", "d", "--dataset_name", "d"),
            "grid: expected budgets in FLOPs: 1e18,3e18, got 'x'.",
        ),
        (
            ("--tokens", "1e9", "--tokens_per_parameter", "20", "--law", "none.json"),
            "law: expected one of the two, got tokens_per_parameter and law.",
        ),
        (
            ("--tokens", "1e9", "--law", "none.json"),
            "law: expected a fit that `plan --fit RUNS --json` printed, got none.json: FileNot",
        ),
        (
            ("--flop", "1"),
            "flop: expected a known option or value, got --flop. Did you mean flops?",
        ),
    ],
)
def test_a_mistake_is_one_error_line(words: tuple[str, ...], error: str) -> None:
    (line,) = mistakes(*words)
    assert line.startswith(f"error[2]: {error}")


def test_all_mistakes_are_reported_together() -> None:
    lines = mistakes("--flops", "-1", "--model", "7", "--batch_size", "x", "--png", "p")
    assert [line.split()[1] for line in lines] == ["flops:", "model:", "batch_size:", "png:"]


def test_a_prepared_folder_gives_tokens_and_vocabulary(tmp_path: Path) -> None:
    part = StoredPart(train=[[5] * 40, [6] * 2], evaluation=[[7] * 100])
    folder = write_stored(tmp_path / "d", [part])
    request = plan_options(["--data", str(folder), "--model", "6"])
    assert (request.tokens, request.vocabulary) == (42, 320)
    assert request.dataset_name == request.data == str(folder)


def test_data_may_be_a_number_of_tokens() -> None:
    request = plan_options(["--data", "3e9"])
    assert (request.tokens, request.data, request.dataset_name) == (3e9, "", "")


def test_a_folder_that_is_not_sealed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError) as refused:
        plan_options(["--data", str(tmp_path), "--model", "6"])
    (problem,) = refused.value.problems
    assert (problem.field, problem.code) == ("data", 3)


def test_the_law_of_a_fit_is_read(tmp_path: Path) -> None:
    laws = {"llada": {"parameters": {"scale": 0.5, "exponent": 0.45, "error": None}}}
    (tmp_path / "fit.json").write_text(json.dumps({"fits": laws}))
    request = plan_options(["--flops", "1e18", "--law", str(tmp_path / "fit.json")])
    assert (request.law.scale, request.law.exponent) == (0.5, 0.45)
