"""Parameters that ask for too much: each is refused in one short line before anything is made."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import LONGEST, refused, short_paths
from helpers.support import ROOT, TINY_CONFIG, run_main, try_out_here

from plugin.base.errors import JobError
from plugin.config.params import SCHEMA, Params
from plugin.config.parse import parse
from plugin.data.sources import parse_mixture
from plugin.parent import check
from plugin.parent.launch import count_processes
from plugin.run.asked import config_values

REQUIRED = {"dataset_name": "d.jsonl", "model_name": "m"}


# --- numbers


def bounds(name: str) -> tuple[str, float, bool] | None:
    """Return a number's kind, upper bound, and whether the bound is allowed; None for no number."""
    for kind in SCHEMA[name].get("anyOf", [SCHEMA[name]]):
        if kind.get("type") in ("integer", "number"):
            most = kind.get("maximum", kind.get("exclusiveMaximum"))
            return kind["type"], most, "maximum" in kind
    return None


NUMBERS = {name: found for name in SCHEMA if (found := bounds(name))}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_ends_somewhere(name: str) -> None:
    """Audit 12: lora_alpha and hang_timeout_s took 10^400."""
    kind, most, allowed = NUMBERS[name]
    assert most is not None
    assert math.isfinite(most)
    beyond = most + (1 if kind == "integer" else 1e-3 * most) if allowed else most
    for value in (
        beyond,
        str(beyond),
        10**400,
        "1" + "0" * 400,
        1e308,
        -(10**400),
        "9" * 100_000,
        10**10_000,
    ):
        problem = refused(lambda value=value: parse({**REQUIRED, name: value}))
        assert (problem.field, problem.code) == (name, 2)
    assert Params.model_validate({name: most if allowed else 0})


def test_every_number_of_the_form_ends_somewhere() -> None:
    form = json.loads((ROOT / "index.json").read_text(encoding="utf-8"))["parameters"]
    numbers = {
        name: field for name, field in form.items() if field.get("type") in ("integer", "number")
    }
    assert len(numbers) > 10
    for name, field in numbers.items():
        assert "maximum" in field or "exclusiveMaximum" in field, name


def test_processes_of_a_cpu_end_at_its_cores() -> None:
    """Audit 12: 100000 processes were planned."""
    assert refused(lambda: parse({**REQUIRED, "num_processes": 100_000})).field == "num_processes"
    problem = refused(lambda: count_processes(Params(num_processes=1024), ()))
    assert (problem.field, problem.code) == ("num_processes", 2)
    assert str(max(8, 4 * (os.cpu_count() or 1))) in problem.expected
    assert count_processes(Params(num_processes=4), ()) == 4


def test_check_of_many_processes_answers_soon(
    tmp_path: Path, tiny_config: Path, pairs_file: Path
) -> None:
    """Audit 12: `check` had no answer within a minute."""
    args = ("--model_config", tiny_config, "--dataset_name", pairs_file, "--num_processes", 100_000)
    done = run_main("check", *args, cwd=tmp_path, timeout_s=30)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error[2]: num_processes: expected 'auto' or an integer >= 1 and <= 1024, got '100000'."
    )


@pytest.mark.parametrize("value", ["0," * 70 + "0", "9" * 5000])
def test_gpu_ids_end_somewhere(value: str) -> None:
    assert refused(lambda: parse({**REQUIRED, "gpu_ids": value})).field == "gpu_ids"


# --- values of a wrong kind


def laughs(levels: int = 9) -> list[Any]:
    value: list[Any] = ["x"] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "name", ["seed", "run_dir", "advanced", "max_steps", "lora", "report_to", "nobody"]
)
def test_a_list_is_refused_before_it_is_quoted(name: str) -> None:
    """Audit 9: repr of nine levels of ten would have a billion words."""
    problem = refused(lambda: parse({**REQUIRED, "train_steps": 1, name: laughs()}))
    assert "list" in problem.line or name == "nobody"


def test_two_lists_for_one_parameter_are_not_compared() -> None:
    """Audit 9: comparing them would take as long."""
    refused(lambda: parse({**REQUIRED, "train_steps": laughs(), "max_steps": laughs()}))


def test_a_hosts_own_list_is_a_note() -> None:
    (note,) = parse({**REQUIRED, "their_list": laughs()}, unknown="note").notes
    assert note.startswith("their_list: not a parameter")


def aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "seed: *a8", ""])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (aliases(), "an alias in line 2"),
        ("seed: &a 3\ntrain_steps: *a\n", "an alias in line 2"),
        ("a: &a [*a]\n", "an alias in line 1"),
        ("x: " + "[" * 3000 + "]" * 3000, "recursion"),
        ('{"x": ' + "[" * 3000 + "]" * 3000 + "}", "recursion"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "recursion"),
        ("- " * 3000 + "a", "recursion"),
        ("? " * 3000 + "a", ""),
        ("# " + "x" * (1 << 18), "more than 262144 bytes"),
        ("x" * 200_000, "holds a str"),
        ("!" * 100_000, ""),
    ],
)
def test_a_hostile_config_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    """Audit 9, 22: aliases ran for ever, 3,000 brackets were an internal error."""
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with short_paths(tmp_path):
        problem = refused(lambda: config_values("c.yaml"), within_s=10)
    assert (problem.field, problem.code) == ("config", 2)
    assert says in problem.line


@pytest.mark.parametrize("depth", [10, 200, 300, 500, 900, 990])
@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_brackets_of_any_depth_are_refused(opened: str, depth: int, tmp_path: Path) -> None:
    """Audit 22: few enough for JSON, too many for repr."""
    closed = "]" if opened == "[" else "}"
    file = tmp_path / "c.json"
    file.write_text(f'{{"seed": {opened * depth}1{closed * depth}}}', encoding="utf-8")
    with short_paths(tmp_path):
        refused(lambda: parse({**REQUIRED, **config_values("c.json")}))


@pytest.mark.parametrize("value", ["x" * 5_000_000, "a" * 200 + "\0", "a\ud800" * 999])
def test_what_is_quoted_of_a_text_is_cut(value: str) -> None:
    for name in (
        "seed",
        "training_method",
        "adaptor_name",
        "run_dir",
        "instruction_template",
        "advanced",
    ):
        refused(lambda name=name: parse({**REQUIRED, name: value}))
    with pytest.raises(JobError) as caught:
        parse({**REQUIRED, value: 1})
    assert all(len(problem.line) < 2 * LONGEST for problem in caught.value.problems)


def test_a_mixture_of_thousands_is_refused() -> None:
    """The disk is asked about the text between every pair of separators: each may be a path."""
    assert refused(lambda: parse_mixture("|".join(["a"] * 20_000))).field == "dataset_name"


# --- check


def test_a_check_that_hangs_says_at_what(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Path, pairs_file: Path
) -> None:
    monkeypatch.setattr(check, "CHECK_S", 0.05)
    monkeypatch.setattr(check, "CHECK_S_PER_MB", 0)
    params = Params(model_config=str(tiny_config), dataset_name=str(pairs_file))
    problem = refused(lambda: check._try_out(params, 1, download=False))
    assert (problem.code, problem.field) == (9, "check")
    assert "starting" in problem.got


def test_the_time_for_a_check_grows_with_its_data(pairs_file: Path) -> None:
    few, hub, none = (
        Params(dataset_name=name) for name in (str(pairs_file), "some/hub", "missing.jsonl")
    )
    assert check.longest_check_s(few) == pytest.approx(check.CHECK_S, rel=0.01)
    assert check.longest_check_s(hub) is None
    assert check.longest_check_s(none) == check.CHECK_S


@pytest.mark.parametrize(
    "changes",
    [
        {"train_steps": 10**9},
        {"num_train_epochs": 1e6},
        {"batch_size": 1024, "train_steps": 1},
        {"max_length": 128, "eos_block_length": 1 << 20},
        {"warmup_steps": 10**9, "logging_steps": 10**9, "save_total_limit": 10**6},
    ],
)
def test_a_check_of_the_largest_numbers_answers(
    changes: dict[str, Any], tiny_config: Path, pairs_file: Path
) -> None:
    """The bounds are such that all computations with them end."""
    assert TINY_CONFIG["max_position_embeddings"] == 128
    job = {
        "model_config": str(tiny_config),
        "dataset_name": str(pairs_file),
        "max_length": 64,
        "train_device": "cpu",
    }
    began_s = time.process_time()
    try_out_here(parse({**job, **changes}).params, 1)
    assert time.process_time() - began_s < 30
