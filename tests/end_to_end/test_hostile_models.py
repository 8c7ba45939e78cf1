"""Model folders that ask for too much: each is refused in one short line, soon."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz.configs import SMALL
from helpers.refusals import refused, short_paths
from helpers.tiny import tiny_model

from plugin.base.errors import JobError, Problem
from plugin.config.families import FAMILIES
from plugin.config.model_files import MOST_JSON, check_method, check_model_files, read_json
from plugin.config.params import Params
from plugin.data.files.readers import READERS
from plugin.data.sources import parse_mixture
from plugin.data.tokenizer import train_tokenizer
from plugin.models.checks.adapter_config import check_adapter_config
from plugin.models.checks.tokenizer_patterns import is_endless
from plugin.models.configuration import load_config, new_config
from plugin.models.load import check_builds
from plugin.models.lora import LoraSettings, add_adapter, with_adapter
from plugin.models.tokenizer import load_tokenizer
from plugin.run.asked import config_values

# --- pipes and endless files


@pytest.mark.parametrize("suffix", READERS)
def test_a_pipe_as_data_is_refused(suffix: str, tmp_path: Path) -> None:
    """Opening a pipe waits until somebody writes."""
    os.mkfifo(tmp_path / f"d{suffix}")
    with short_paths(tmp_path):
        assert refused(lambda: parse_mixture(f"d{suffix}")).code == 3
        assert refused(lambda: parse_mixture(".")).code == 3, "a folder of nothing else"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_in_a_model_is_refused_or_not_read(
    make: Callable[[Path], None], name: str, model_copy: Path
) -> None:
    (model_copy / name).unlink(missing_ok=True)
    make(model_copy / name)

    def load() -> None:
        check_model_files(str(model_copy))
        load_config(str(model_copy))
        load_tokenizer(str(model_copy))

    if name == "model.safetensors.index.json":
        load()
    else:
        with pytest.raises(JobError) as caught:
            load()
        assert caught.value.code == 4


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), Path.mkdir]
)
def test_a_pipe_as_configuration_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "c.json")
    with short_paths(tmp_path):
        assert refused(lambda: new_config("c.json")).code == 4
        assert refused(lambda: config_values("c.json")).code == 2
        assert read_json(Path("c.json")) == {}
        check_method(Params(model_config="c.json"))  # leaves it to the worker


def test_files_that_no_library_reads_in_time_are_refused(model_copy: Path) -> None:
    for name, size in (
        ("tokenizer.json", 500_000_000),
        ("config.json", MOST_JSON + 1),
        ("chat_template.jinja", MOST_JSON + 1),
    ):
        file = model_copy / name
        before = file.read_bytes() if file.exists() else b"{}"
        with file.open("wb") as opened:
            opened.truncate(size)
        problem = refused_of(lambda: check_model_files(str(model_copy)))
        assert name in problem.got
        file.write_bytes(before)
    check_model_files(str(model_copy))


def refused_of(job: Callable[[], object]) -> Problem:
    with pytest.raises(JobError) as caught:
        job()
    assert caught.value.code == 4
    return caught.value.problems[0]


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "model.safetensors.index.json", "tokenizer.json"],
)
def test_brackets_in_a_models_files_are_a_refusal(name: str, model_copy: Path) -> None:
    """Audit 22: deep JSON is a problem of its file, not ours."""
    (model_copy / name).write_text('{"a":' * 50_000, encoding="utf-8")
    problems: tuple[Problem, ...] = ()
    try:
        check_model_files(str(model_copy))
        load_config(str(model_copy))
        load_tokenizer(str(model_copy))
    except JobError as error:
        problems = error.problems
    assert all(problem.code == 4 and len(problem.line.splitlines()) == 1 for problem in problems)
    assert problems or name == "model.safetensors.index.json"


# --- config.json

HUGE = {
    ("num_hidden_layers", "n_layers"): (200_000, 4_096),
    ("hidden_size", "d_model"): (10**7,),
    ("vocab_size",): (2 * 10**9,),
    ("intermediate_size", "mlp_hidden_size"): (10**9,),
    ("max_position_embeddings", "max_sequence_length"): (10**12,),
    ("num_attention_heads", "n_heads"): (10**9, 10**400),
    ("num_labels",): (10**9,),
    ("anything",): (10**30, -(10**30)),
}


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("names", HUGE)
def test_huge_sizes_are_foretold(family: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Audit 24: 200,000 layers of a small file took half a minute and a gigabyte, unfinished."""
    name = next((name for name in names if name in SMALL[family]), names[0])
    folder = tmp_path / "m"
    tiny_model(family).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for value in HUGE[names]:
        (folder / "config.json").write_text(json.dumps({**saved, name: value}), encoding="utf-8")
        (tmp_path / "c.json").write_text(
            json.dumps({"model_type": family, **SMALL[family], name: value}), encoding="utf-8"
        )
        with short_paths(tmp_path):
            for job in (lambda: load_config("./m"), lambda: new_config("c.json")):
                problem = refused(job, within_s=2)
                assert problem.code == 4
                assert name in problem.expected


@pytest.mark.parametrize("family", SMALL)
def test_the_deepest_model_allowed_is_laid_out_soon(family: str, tmp_path: Path) -> None:
    name = "n_layers" if family == "llada" else "num_hidden_layers"
    fields = {"model_type": family, **SMALL[family], name: 512}
    if family == "modernbert":
        fields["pad_token_id"] = 0
    (tmp_path / "c.json").write_text(json.dumps(fields), encoding="utf-8")
    began_s = time.process_time()
    check_builds(new_config(str(tmp_path / "c.json")), "model_config")
    assert time.process_time() - began_s < 10


@pytest.mark.parametrize("family", ["llada", "Dream"])
@pytest.mark.parametrize("gone", ["d_model", "hidden_size", "vocab_size", "rope_theta"])
def test_a_size_left_out_is_named(family: str, gone: str, tmp_path: Path) -> None:
    """Audit 24: from scratch, a missing size was silently a published model's."""
    if gone not in SMALL[family]:
        return
    fields = {"model_type": family, **SMALL[family]}
    del fields[gone]
    (tmp_path / "c.json").write_text(json.dumps(fields), encoding="utf-8")
    with short_paths(tmp_path):
        problem = refused(lambda: new_config("c.json"))
    assert (problem.field, problem.code) == ("model_config", 4)
    assert gone in problem.got


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_a_deep_configuration_is_refused(opened: str, tmp_path: Path) -> None:
    """Audit 22: deep JSON in a config.json."""
    closed = "]" if opened == "[" else "}"
    for depth in (100, 900, 50_000):
        text = json.dumps({"model_type": "bert", **SMALL["bert"], "x": 0})[:-2]
        (tmp_path / "c.json").write_text(
            f"{text}{opened * depth}1{closed * depth}}}", encoding="utf-8"
        )
        with short_paths(tmp_path):
            assert refused(lambda: new_config("c.json")).code == 4


# --- adapters


def adapter(folder: Path, **fields: Any) -> Path:
    live = add_adapter(tiny_model("bert"), FAMILIES["bert"], LoraSettings(4, 8, 0.0, "auto"), [])
    live.save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8"
    )
    return folder


ENDLESS = "(.*.*.*.*.*.*.*.*)*zz"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ENDLESS},
        {"target_modules": [ENDLESS]},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"layers_pattern": ENDLESS, "layers_to_transform": [0]},
        {"layers_to_transform": [10**30]},
        {"modules_to_save": ["(a+)+"]},
        {"r": 10**9},
        {"r": -1},
        {"r": "4"},
        {"r": 10**400},
        {"rank_pattern": {"query": 10**9}},
        {"lora_alpha": 10**400},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9},
    ],
)
def test_an_adapter_that_asks_too_much_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    """Audit 24: a regular expression ran for ever, r 10^9 asked for 64 GB."""
    adapter(tmp_path / "a", **fields)
    model = tiny_model("bert")
    with short_paths(tmp_path):
        problem = refused(lambda: with_adapter(model, Path("a")))
    assert (problem.field, problem.code) == ("adapter", 4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "query"},
        {"target_modules": ["query", "value"], "rank_pattern": {"query": 4}},
    ],
)
def test_an_adapter_of_names_is_taken(fields: dict[str, Any], tmp_path: Path) -> None:
    check_adapter_config(adapter(tmp_path / "a", **fields) / "adapter_config.json")


# --- tokenizers


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(?:a*)*b",
        "((a|b+)c?)*",
        "(x(a+)y)+",
        r"(\p{L}+\s?)+",
        "([ab]{2,})*",
        "(?:[a-z]+){100}",
    ],
)
def test_an_endless_pattern_is_known(pattern: str) -> None:
    assert is_endless(pattern)


PUBLISHED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" ?[^(\s|[.,!?…。,、।۔،])]+",
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    " {2,}",
)


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_are_taken(pattern: str) -> None:
    assert not is_endless(pattern)


def test_a_tokenizer_with_an_endless_pattern_is_refused(tmp_path: Path) -> None:
    """The pattern ran over thirty letters for minutes, in code that no signal reaches."""
    train_tokenizer(["one two"], 300).save_pretrained(tmp_path / "t")
    file = tmp_path / "t" / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    fields["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, fields["pre_tokenizer"]],
    }
    file.write_text(json.dumps(fields), encoding="utf-8")
    with short_paths(tmp_path):
        problem = refused(lambda: load_tokenizer("./t"))
    assert (problem.field, problem.code) == ("model_name", 4)
