"""Refusals by the real programs: the terminal's lines, the exit code, the working folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.forks import Forks
from helpers.support import (
    ERROR,
    MAIN,
    child_env,
    is_running,
    pairs,
    patience,
    read_lines,
    refusal,
    run_main,
    start,
    wait_until,
    write_rows,
)


def job(tiny_config: Path, pairs_file: Path) -> list[object]:
    return [
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--train_steps",
        2,
        "--max_length",
        64,
    ]


@pytest.mark.parametrize("verb", ["check", "train"])
def test_wrong_values_are_reported_together_and_nothing_starts(verb: str, tmp_path: Path) -> None:
    done = run_main(
        verb, "--batch_size", 0, "--learning_rate", "fast", "--training_metod", "bert", cwd=tmp_path
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert [ERROR.match(line)[2] for line in lines] == [
        *("training_metod", "batch_size", "learning_rate", "dataset_name", "model_name"),
    ]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (["--gpu_ids", "4"], 2, "gpu_ids"),
        (["--dataset_name", "missing.jsonl"], 3, "dataset_name"),
        (["--run_dir", "full"], 2, "run_dir"),
    ],
)
def test_train_refuses_before_anything_is_written(
    tmp_path: Path, tiny_config: Path, pairs_file: Path, change: list[str], code: int, field: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    done = run_main("train", *job(tiny_config, pairs_file), *change, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert refusal((done.returncode, [line], ""))[:2] == (code, field)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "full",
        "full/mine.txt",
    ]


def test_check_as_json_is_one_object_with_the_problem(tmp_path: Path, tiny_config: Path) -> None:
    args = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        "missing.jsonl",
        "--run_dir",
        "out",
        "--json",
    )
    done = run_main("check", *args, cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert done.returncode == 3
    assert answer["ok"] is False
    (problem,) = answer["problems"]
    assert set(problem) == {"field", "expected", "got", "fix", "code"}
    assert (problem["field"], problem["code"]) == ("dataset_name", 3)
    assert answer["plan"]["launch"]["processes"] == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("error[")]) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["check", "train"])
def test_float8_on_a_cpu_is_refused_by_name(
    verb: str, tmp_path: Path, tiny_config: Path, pairs_file: Path
) -> None:
    done = run_main(verb, *job(tiny_config, pairs_file), "--float8", "true", cwd=tmp_path)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    assert line == "error[2]: float8: expected an NVIDIA GPU, got a CPU. Set float8 false."
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", [False, True])
def test_a_refusal_of_the_worker_leaves_no_run_folder(
    tmp_path: Path, pairs_file: Path, model_copy: Path, made: bool
) -> None:
    (model_copy / "model.safetensors").write_bytes(
        b"not safetensors"
    )  # seen only when it is loaded
    out = tmp_path / "runs" / "out"
    if made:
        out.mkdir(parents=True)
    args = (
        "--model_name",
        model_copy,
        "--dataset_name",
        pairs_file,
        "--run_dir",
        out,
        "--max_length",
        64,
    )
    done = run_main("train", *args, "--json", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    assert refusal((done.returncode, lines, ""))[:2] == (4, "model_name")
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    assert (answer["outcome"], answer["code"], answer["error"]["field"]) == (
        "failed",
        4,
        "model_name",
    )
    assert list((tmp_path / "runs").rglob("*")) == ([out] if made else []), (
        "a folder of the user's stays, empty"
    )
    assert (tmp_path / "runs").exists() is made


def test_the_command_that_check_prints_trains_from_any_folder(
    tmp_path: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "my data").mkdir()
    write_rows(tmp_path / "my data" / "pairs.jsonl", pairs()[:1])
    common = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        "my data/pairs.jsonl",
        "--max_length",
        64,
        "--train_steps",
        1,
    )
    options = (
        "--eval_strategy",
        "no",
        "--batch_size",
        1,
        "--fuse_model",
        "false",
        "--run_dir",
        "my run",
    )
    templates = (
        "--instruction_template",
        "Say: {{ prompt }}",
        "--output_template",
        "{{ response }}",
    )
    checked = run_main("check", *common, *options, *templates, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    lines = [line.partition(" ") for line in checked.stdout.splitlines()]
    command = next(rest.strip() for name, _, rest in lines if name == "train" and "main.py" in rest)
    assert "never evaluated, saved every 1 step\n" in checked.stdout
    assert "1 step x 1 document = 1 pass" in checked.stdout
    assert "1 document of 1 row, " in checked.stdout
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        command,
        shell=True,
        cwd=elsewhere,
        env=child_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    params = json.loads((elsewhere / "my run" / "run.json").read_text())["params"]
    assert (params["train_steps"], params["batch_size"], params["fuse_model"]) == (1, 1, False)
    assert params["dataset_name"] == str(tmp_path / "my data" / "pairs.jsonl")


def test_train_as_json_refuses_as_json(tmp_path: Path) -> None:
    done = run_main("train", "--batch_size", 0, "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert done.returncode == answer["code"] == 2
    assert (answer["outcome"], answer["run_dir"], answer["error"]["field"]) == (
        "failed",
        None,
        "batch_size",
    )


@pytest.mark.parametrize(
    "words",
    [("chat",), ("chat", "x", "--bogus"), ("fuse", "--out", "x"), ("chat", "x", "--top_p", "2")],
)
def test_other_verbs_refuse_a_command_line_alike(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run_main(*words, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error[2]: ")


def test_ctrl_c_before_a_run_shows_no_traceback(
    tmp_path: Path, tiny_config: Path, pairs_file: Path
) -> None:
    """A terminal signals the full group, so the torch part must not be in it.

    Here that part stands still where it would import torch.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, signal, sys\n"
        "if 'plugin.worker' in sys.orig_argv:\n"
        "    pathlib.Path(__file__).with_name('importing').symlink_to(str(os.getpid()))  # there at once, with its content\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, MAIN, "check", *job(tiny_config, pairs_file)]
    with start(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, own_group=True) as program:
        wait_until((tmp_path / "importing").is_symlink, "the torch part of check")
        child = int(os.readlink(tmp_path / "importing"))
        os.killpg(program.pid, signal.SIGINT)
        try:
            _, err = program.communicate(timeout=patience(60))
        finally:
            program.kill()
    assert program.returncode == 130
    assert "Traceback" not in err
    assert not is_running(child), "it ended with its parent"


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_model_that_is_not_finite_ends_with_exit_6(
    verb: str, tmp_path: Path, model_copy: Path, pairs_file: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model_copy / "model.safetensors")
    weights["decoder.bias"][:] = float("nan")
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    run_dir = tmp_path / "out"
    args = (
        "--model_name",
        model_copy,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--run_dir",
        run_dir,
        "--json",
    )
    done = run_main(verb, *args, "--train_steps", 2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    assert refusal((done.returncode, [line], ""))[0] == 6
    assert "Traceback" not in done.stderr
    assert "NaN" not in done.stdout
    if verb == "train":
        assert json.loads(done.stdout)["error"]["code"] == 6
        assert read_lines(run_dir / "metrics.jsonl") == []


def test_a_corrected_second_try_may_have_the_same_folder(
    forks: Forks, tmp_path: Path, tiny_config: Path, pairs_file: Path
) -> None:
    common = ("--model_config", tiny_config, "--dataset_name", pairs_file)
    fast = ("--train_steps", 1, "--batch_size", 2, "--eval_strategy", "no", "--fuse_model", "false")
    first = forks.run(tmp_path / "run", *common, *fast, "--max_length", 2)
    assert first.code == 3, first.err
    assert "error[3]: max_length: " in first.err
    assert not (tmp_path / "run").exists()
    second = forks.run(tmp_path / "run", *common, *fast, "--max_length", 64)
    assert second.code == 0, second.err
    third = forks.run(tmp_path / "run", *common, *fast, "--max_length", 64)
    assert third.code == 2
    assert "run_dir: expected a new or empty folder, got " in third.err
    assert "or resume that run with --resume true." in third.err


def test_visibly_wrong_model_or_template_leaves_no_folder(tmp_path: Path, pairs_file: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"x")
    out = tmp_path / "run"
    bad = ("--instruction_template", "{{ ''.__class__ }}", "--output_template", "{{ response }}")
    done = run_main(
        "train",
        "--model_name",
        str(model),
        "--dataset_name",
        str(pairs_file),
        *bad,
        "--run_dir",
        str(out),
    )
    assert done.returncode == 2
    assert "error[2]: instruction_template:" in done.stderr
    assert "error[4]: model_name:" in done.stderr
    assert not out.exists()
