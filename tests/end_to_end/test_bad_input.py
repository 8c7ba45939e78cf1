"""Mistakes of a user: one clear line that names the field, the right exit code, no files.

No traceback is shown. The command line runs in this process, with the torch part of `check` called
instead of spawned; test_refusals.py starts the real programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ERROR, pairs, refusal, try_out_here, write_rows

from plugin import cli
from plugin.parent import check as parent_check


@pytest.fixture
def check(
    tmp_path: Path,
    tiny_config: Path,
    pairs_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, list[str], str]]:
    """Return check(field=value, ...) -> exit code, error lines, stdout.

    It asserts that nothing was written and no traceback shown.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parent_check, "_try_out", try_out_here)

    def call(*flags: str, **values: object) -> tuple[int, list[str], str]:
        base: dict[str, object] = {
            "model_config": tiny_config,
            "dataset_name": pairs_file,
            "run_dir": tmp_path / "out",
        }
        base |= {"train_steps": 20, "max_length": 64, "train_device": "auto"}
        if "model_name" in values:
            del base["model_config"]
        before = sorted(tmp_path.rglob("*"))
        words = [
            word for name, value in (base | values).items() for word in (f"--{name}", str(value))
        ]
        code = cli.main(["check", *words, *flags])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        assert sorted(tmp_path.rglob("*")) == before, "check wrote something"
        return code, [line for line in err.splitlines() if line.startswith("error[")], out

    return call


def test_a_good_job_passes(check: Callable[..., Any]) -> None:
    """The other tests of this file mean something only because this one passes."""
    code, lines, out = check()
    assert (code, lines) == (0, [])
    assert out.splitlines()[-1] == "ok: this job can run"


# --- values


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("training_method", "gpt", "one of bert, dream, llada, block, causal, got 'gpt'"),
        ("gpu_ids", "4", "4; this machine has no GPU"),
        ("batch_size", "0", "an integer >= 1 and <= 16384, got '0'"),
        ("learning_rate", "fast", "a number > 0 and <= 1, got 'fast'"),
        ("adaptor_name", "../evil", "a name of letters"),
        ("adaptor_name", "..", "a name of letters"),
        ("train_device", "cuda", "none is visible"),
        ("model_config", "", "one of model_name, model_config and start_from"),
    ],
)
def test_a_wrong_value_exits_2_and_names_its_field(
    check: Callable[..., Any], field: str, value: str, words: str
) -> None:
    code, named, line = refusal(check(**{field: value}))
    assert code == 2
    assert named == field.replace("model_config", "model_name")
    assert words in line


def test_an_unknown_option_exits_2_with_a_hint(check: Callable[..., Any]) -> None:
    code, (line,), _ = check("--batch-size", "8")
    assert code == 2
    assert line.startswith("error[2]: batch-size: ")
    assert line.endswith("Did you mean batch_size?")


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_document_longer_than_a_micro_batch_names_both_lengths(
    check: Callable[..., Any], packing: str
) -> None:
    code, field, line = refusal(check(tokens_per_batch=20, packing=packing, eos_policy="single"))
    assert (code, field) == (2, "tokens_per_batch")
    assert re.search(r"at least the \d\d tokens of the longest document, got 20", line)


def test_an_attention_that_the_device_lacks_is_refused(check: Callable[..., Any]) -> None:
    code, field, line = refusal(check(attn_implementation="varlen", train_device="cpu"))
    assert (code, field) == (2, "attn_implementation")
    assert "varlen; its kernels need CUDA, and this is a CPU" in line


def test_unproved_model_is_not_packed(
    check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a family proved to keep packed documents apart is packed."""
    from plugin.models.backbones import BACKBONES

    monkeypatch.setitem(BACKBONES, "modernbert", replace(BACKBONES["modernbert"], encode_flat=None))
    code, field, line = refusal(check(packing="on"))
    assert (code, field) == (2, "packing")
    able = ", ".join(family for family in BACKBONES if family != "modernbert")
    assert f"({able}), got modernbert. Set packing off." in line


def test_layers_cannot_be_compiled_and_recomputed_in_parts(check: Callable[..., Any]) -> None:
    assert refusal(check(compile="on", recompute="selective"))[:2] == (2, "recompute")


# --- data


def test_max_length_below_every_prompt_names_the_shortest(check: Callable[..., Any]) -> None:
    """The error gives the length of the shortest prompt."""
    code, field, line = refusal(check(max_length=3))
    assert (code, field) == (3, "max_length")
    assert re.search(r"more than the shortest prompt's \d+ tokens", line)


def test_no_supervised_token_after_filtering_names_max_length(
    check: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}?", "response": "a long answer " * 10} for n in range(8)]
    file = write_rows(tmp_path / "long.jsonl", rows)
    code, field, line = refusal(check(dataset_name=file, max_length=16, truncation="filter"))
    assert (code, field) == (3, "max_length")
    assert "longer than max_length" in line


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/such/folder"])
def test_a_missing_file_is_named(check: Callable[..., Any], name: str) -> None:
    code, field, line = refusal(check(dataset_name=name))
    assert (code, field) == (3, "dataset_name")
    assert name in line


def test_malformed_json_names_its_line(check: Callable[..., Any], tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in pairs()]
    lines[6] = '{"prompt": "half'
    (tmp_path / "broken.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, field, line = refusal(check(dataset_name=tmp_path / "broken.jsonl"))
    assert (code, field) == (3, "dataset_name")
    assert "broken.jsonl line 7" in line


def test_rows_without_usable_columns_name_the_columns_seen(
    check: Callable[..., Any], tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "odd.jsonl", [{"left": "a", "right": "b"}] * 3)
    code, field, line = refusal(check(dataset_name=file))
    assert (code, field) == (3, "dataset_name")
    assert "'left'" in line
    assert "'right'" in line


def test_empty_response_column_reports_dropped_rows_and_cause(
    check: Callable[..., Any], tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "empty.jsonl", [{**row, "response": " "} for row in pairs()])
    code, field, line = refusal(check(dataset_name=file))
    assert (code, field) == (3, "dataset_name")
    assert "24 x empty response" in line


def test_an_empty_file_has_no_row(check: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "nothing.jsonl").touch()
    code, field, line = refusal(check(dataset_name=tmp_path / "nothing.jsonl"))
    assert (code, field) == (3, "dataset_name")
    assert "at least one row" in line


@pytest.mark.parametrize(
    "template",
    ["{{ prompt.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ prompt['__class__'] }}"],
)
def test_a_template_that_reaches_for_class_names_its_field(
    check: Callable[..., Any], template: str
) -> None:
    code, field, _ = refusal(check(instruction_template="{{ prompt }}", output_template=template))
    assert (code, field) == (2, "output_template")


# --- models


def test_a_good_model_folder_passes(check: Callable[..., Any], tiny_bert: Path) -> None:
    assert check(model_name=tiny_bert)[:2] == (0, [])


def test_a_model_without_a_mask_token_is_refused(
    check: Callable[..., Any], model_copy: Path
) -> None:
    file = model_copy / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["mask_token"]
    file.write_text(json.dumps(config))
    code, field, line = refusal(check(model_name=model_copy))
    assert (code, field) == (4, "model_name")
    assert "a tokenizer with a mask token" in line


def test_an_encoder_without_its_masked_lm_head_is_refused(
    check: Callable[..., Any], model_copy: Path
) -> None:
    from transformers import AutoModelForMaskedLM

    encoder = AutoModelForMaskedLM.from_pretrained(model_copy).model
    (model_copy / "model.safetensors").unlink()
    encoder.save_pretrained(model_copy)
    code, field, line = refusal(check(model_name=model_copy))
    assert (code, field) == (4, "model_name")
    assert "ModernBertForMaskedLM" in line
    assert "ModernBertModel" in line


def test_missing_head_weights_are_refused(check: Callable[..., Any], model_copy: Path) -> None:
    """Refuse the model though its config.json promises a head."""
    from safetensors.torch import load_file, save_file

    file = model_copy / "model.safetensors"
    weights = load_file(file)
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith("head.")},
        file,
        {"format": "pt"},
    )
    code, field, line = refusal(check(model_name=model_copy))
    assert (code, field) == (4, "model_name")
    assert "missing head.dense.weight" in line


def test_pickled_weights_are_refused_with_the_way_out(
    check: Callable[..., Any], model_copy: Path
) -> None:
    (model_copy / "model.safetensors").rename(model_copy / "pytorch_model.bin")
    code, field, line = refusal(check(model_name=model_copy))
    assert (code, field) == (4, "model_name")
    assert "pytorch_model.bin" in line
    assert "save_pretrained" in line


def test_a_folder_that_is_no_model_is_refused(check: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(check(model_name=tmp_path / "empty"))[:2] == (4, "model_name")
    assert refusal(check(model_name="./not-there"))[:2] == (4, "model_name")


def test_weights_cut_short_are_refused(check: Callable[..., Any], model_copy: Path) -> None:
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert refusal(check(model_name=model_copy))[:2] == (4, "model_name")


@pytest.mark.parametrize("content", ["{", '{"model_type": "nonsense"}', "[]"])
def test_a_model_folder_with_a_broken_configuration_is_refused(
    check: Callable[..., Any], model_copy: Path, content: str
) -> None:
    (model_copy / "config.json").write_text(content)
    assert refusal(check(model_name=model_copy))[:2] == (4, "model_name")


def test_a_model_folder_without_a_tokenizer_asks_for_one(
    check: Callable[..., Any], model_copy: Path
) -> None:
    for file in model_copy.glob("tokenizer*"):
        file.unlink()
    assert refusal(check(model_name=model_copy))[:2] == (4, "tokenizer_name")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{",
            "[]",
            "{}",
            '{"model_type": "gpt2"}',
            '{"model_type": ["bert"]}',
            '{"model_type": "bert", "vocab_size": 100}',
        ),
        '{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}',
        '{"model_type": "bert", "hidden_size": "wide"}',
    ],
)
def test_a_configuration_that_is_none_of_ours_is_refused(
    check: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.json").write_text(text)
    code, field, _ = refusal(check(model_config=tmp_path / "c.json"))
    assert (code, field) == (4, "model_config")


def test_wrong_model_and_wrong_data_are_reported_together(
    check: Callable[..., Any], tiny_bert: Path
) -> None:
    code, lines, _ = check(dataset_name="missing.jsonl", model_name="./not-there", gpu_ids="4")
    assert sorted(ERROR.match(line)[2] for line in lines) == [
        "dataset_name",
        "gpu_ids",
        "model_name",
    ]
    assert code == 2


# --- the run folder


def test_a_run_folder_with_anything_in_it_is_refused(
    check: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert check()[:2] == (0, [])
    (tmp_path / "out" / "mine.txt").write_text("precious")
    code, field, _ = refusal(check())
    assert (code, field) == (2, "run_dir")
    assert refusal(check(run_dir=tmp_path / "out" / "mine.txt"))[:2] == (2, "run_dir")
