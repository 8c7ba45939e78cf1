"""Command line: typed values, a --config file, and their precedence."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.support import ROOT

from plugin import cli
from plugin.config.methods import METHODS
from plugin.config.params import GROUPS, Params
from plugin.config.parse import Parsed, parse

JOB = {"dataset_name": "data.jsonl", "model_name": "model"}
Run = Callable[..., tuple[int, Params | None, list[str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return call(words...) -> exit code, parameters passed to check, error lines."""

    def call(*words: object) -> tuple[int, Params | None, list[str]]:
        got: list[Params] = []

        def check_job(parsed: Parsed, *, as_json: bool, download: bool) -> int:
            got.append(parsed.params)
            return 0

        monkeypatch.setattr(cli, "check_job", check_job)
        code = cli.main([str(word) for word in words])
        return code, got[0] if got else None, capsys.readouterr().err.splitlines()

    return call


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


HEAD = "dataset_name: data.jsonl\nmodel_name: model\n"


def test_typed_values_win_over_those_of_a_file(run: Run, config: Callable[[str], Path]) -> None:
    file = config(HEAD + "batch_size: 16\nlearning_rate: 3e-4\n# a comment\nfuse_model: false\n")
    code, params, _ = run("check", "--config", file, "--batch_size", 2)
    assert code == 0
    assert (
        params == parse({**JOB, "batch_size": 2, "learning_rate": 3e-4, "fuse_model": False}).params
    )


def test_gradient_checkpointing_may_be_bare(run: Run, config: Callable[[str], Path]) -> None:
    code, params, _ = run("check", "--config", config(HEAD), "--gradient_checkpointing")
    assert params
    assert (code, params.recompute) == (0, "full")


def test_an_alias_typed_wins_over_the_name_in_the_file(
    run: Run, config: Callable[[str], Path]
) -> None:
    file = config(HEAD + "batch_size: 16\nmax_steps: 9\n")
    _, params, _ = run(
        "check", "--config", file, "--per_device_train_batch_size", 2, "--train_steps", 5
    )
    assert params is not None
    assert (params.batch_size, params.train_steps) == (2, 5)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("eval_strategy: no", "eval_strategy", "no"),  # in YAML 1.1 these words are booleans ...
        ("packing: off", "packing", "off"),
        ("compile: off", "compile", "off"),
        ("gpu_ids: 0", "gpu_ids", "0"),  # ... and these are numbers
        ("gpu_ids: 0,2", "gpu_ids", "0,2"),
        ("adaptor_name: 007", "adaptor_name", "007"),
        ("resume: false", "resume", "false"),
        ("batch_size: 8", "batch_size", 8),
        ("learning_rate: 2e-5", "learning_rate", 2e-5),
        ("mask_prompt_loss: no", "mask_prompt_loss", False),
        ("tokenizer_name: null", "tokenizer_name", ""),
        ("tokenizer_name:", "tokenizer_name", ""),
    ],
)
def test_a_word_in_a_file_means_what_it_says(
    run: Run, config: Callable[[str], Path], line: str, name: str, value: object
) -> None:
    code, params, errors = run("check", "--config", config(HEAD + line))
    assert (code, errors) == (0, [])
    assert params is not None
    assert params.as_json()[name] == value


def test_a_run_json_repeats_its_parameters_but_not_its_folder(run: Run, tmp_path: Path) -> None:
    params = parse(
        {**JOB, "run_dir": "/somewhere", "seed": 7, "eval_strategy": "no", "learning_rate": 1.25e-5}
    ).params
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"params": params.as_json(), "environment": {}, "result": None}))
    _, again, _ = run("check", "--config", file)
    assert again == params.model_copy(update={"run_dir": ""})


@pytest.mark.parametrize("odd", ["\x81", "\x7f", "\ufeff", "\u2028", "\t", ": #"])
def test_a_run_json_repeats_texts_of_any_characters(run: Run, tmp_path: Path, odd: str) -> None:
    params = parse({**JOB, "instruction_template": f"a{odd}b"}).params
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"params": params.as_json()}, ensure_ascii=False), encoding="utf-8")
    _, again, _ = run("check", "--config", file)
    assert again == params


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_config_nested_too_deeply_is_refused(
    run: Run, config: Callable[[str], Path], opening: str
) -> None:
    code, _, (line,) = run("check", "--config", config(opening * 20_000))
    assert code == 2
    assert line.startswith("error[2]: config: ")


def test_typed_steps_win_over_epochs_in_the_file(run: Run, config: Callable[[str], Path]) -> None:
    file = config(HEAD + "num_train_epochs: 3\n")
    _, params, _ = run("check", "--config", file, "--train_steps", 5)
    assert params is not None
    assert (params.num_train_epochs, params.train_steps) == (0, 5)
    code, _, errors = run("check", "--config", file, "--max_steps", 5, "--num_train_epochs", 1)
    assert code == 2
    assert errors[0].startswith("error[2]: train_steps: ")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "{", "a: [1", ""])
def test_a_file_without_parameters_is_refused(
    run: Run, config: Callable[[str], Path], text: str
) -> None:
    code, params, (line,) = run("check", "--config", config(text))
    assert (code, params) == (2, None)
    assert line.startswith("error[2]: config: ")


def test_a_missing_or_unreadable_file_is_refused(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        code, _, (line,) = run("check", "--config", path)
        assert code == 2
        assert line.startswith("error[2]: config: ")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    assert run("check", "--config", tmp_path / "binary.yaml")[0] == 2


GOOD = ("--dataset_name", "d", "--model_name", "m")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("trian",),
            "command: expected one of train, check, prepare, plan, chat, sample, evaluate, fuse, export,"
            " probe, compare, plot, queue, studio, got trian. Did you",
        ),
        (
            ("check", "--batch_size"),
            "batch_size: expected an integer >= 1 and <= 16384, got nothing. A value that begins with - is written",
        ),
        (("check", "--learning_rate", "-1e-5", *GOOD), "learning_rate: expected a number"),
        (("check", "--json=yes", *GOOD), "json: expected no value, it is a switch, got 'yes'."),
        (("check", "stray", *GOOD), "stray: expected a known parameter, got an unknown name."),
        (
            ("check", "--lr", "1", *GOOD),
            "lr: expected a known parameter, got an unknown name. Did you mean learning_rate?",
        ),
        (
            ("check", "--adaptor=x", *GOOD),
            "adaptor: expected a known parameter, got an unknown name. Did you mean adaptor_name?",
        ),
        (
            ("check", "--batch-size", "4", *GOOD),
            "batch-size: expected a known parameter, got an unknown name. Did you mean batch_",
        ),
        (
            ("check", "-lr", "1", *GOOD),
            "lr: expected a known parameter, got an unknown name. Did you mean learning_rate?",
        ),
        (
            ("check", "--optim", "adam", *GOOD),
            "optim: expected one of adamw, adamw_8bit, got 'adam'. Did you mean adamw?",
        ),
        (("chat",), "model: expected a value for model, got nothing. See main.py chat --help."),
        (
            ("chat", "m", "--bloc_length", "3"),
            "bloc_length: expected a known option or value, got --bloc_length. Did",
        ),
        (
            ("chat", "-- ", "-- "),
            "command: expected a known option or value, got --. See main.py chat --help.",
        ),
        (
            ("--plugin_dir", "d"),
            "input_file: expected --input_file INPUT_FILE (required), got nothing. See main.py --help.",
        ),
        (
            ("prepare",),
            "config: expected --config FILE (required) and --out OUT (required), got nothing. See",
        ),
        (("chat", "m", "--steps", "0"), "steps: expected a whole number from 1 up, got 0."),
        (
            ("fuse", "--out", "x"),
            "adapter: expected a value for adapter or checkpoint, got nothing. See main.py fuse --help.",
        ),
        (
            ("fuse", "--adapter", "a", "--model_name", "m", "--out", "o", "--fuse_base", "orginal"),
            "fuse_base: expected one of trained, original, got orginal. Did you mean original?",
        ),
        (
            ("export", "m", "--format", "gguf", "--out", "o"),
            "format: expected one of sdar, got gguf.",
        ),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_error_line(
    run: Run, words: tuple[str, ...], error: str
) -> None:
    code, params, (line,) = run(*words)
    assert (code, params) == (2, None)
    assert line.startswith(f"error[2]: {error}")


def test_a_folder_as_config_names_the_file_in_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    code, _, (line,) = run("check", "--config", tmp_path)
    assert code == 2
    assert line.endswith(
        f"got {tmp_path}, which is a folder. Give {tmp_path / 'run.json'}, which repeats that run."
    )


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    return capsys.readouterr().out


def test_the_help_names_the_method_an_option_belongs_to(help_text: str) -> None:
    options = [(name, method.name) for method in METHODS.values() for name in method.options]
    assert {method for _, method in options} == {"dream", "block"}
    for name, method in options:
        assert re.search(rf"--{name} \S+\s+{method} only: ", help_text), name
    assert re.search(r"--lora_r VALUE\s+with --lora true: ", help_text)


def test_the_help_has_the_groups_of_the_declaration(help_text: str) -> None:
    source = (ROOT / "plugin" / "config" / "params.py").read_text(encoding="utf-8")
    declared = re.findall(r"# --- (.+)\n    (\w+): ", source)
    assert {first: title for title, first in declared} == GROUPS
    assert [line for line in help_text.splitlines() if line.rstrip(":") in GROUPS.values()] == [
        f"{t}:" for t in GROUPS.values()
    ]


def test_the_version_is_the_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    version = json.loads((ROOT / "index.json").read_text(encoding="utf-8"))["version"]
    assert capsys.readouterr().out == f"diffusion-llm-trainer {version}\n"


@pytest.mark.parametrize(
    ("words", "before", "threads", "policy"),
    [
        (("chat", "m"), {}, str(os.cpu_count()), "PASSIVE"),
        (
            ("fuse", "--adapter", "a", "--model_name", "m", "--out", "o"),
            {},
            str(os.cpu_count()),
            "PASSIVE",
        ),
        (
            ("chat", "m"),
            {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"},
            "3",
            "ACTIVE",
        ),  # a user's own settings
    ],
)
def test_torch_programs_get_the_threads_of_a_worker(
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    before: dict[str, str],
    threads: str,
    policy: str,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    started: list[dict[str, str]] = []

    def execve(path: str, argv: list[str], env: dict[str, str]) -> None:
        started.append(env)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(KeyboardInterrupt):
        cli.main(words)
    (env,) = started
    assert (env["OMP_NUM_THREADS"], env["OMP_WAIT_POLICY"]) == (threads, policy)


def test_no_command_shows_the_help_and_exits_2(run: Run) -> None:
    code, _, lines = run()
    assert code == 2
    assert lines[0].startswith("usage: ")
