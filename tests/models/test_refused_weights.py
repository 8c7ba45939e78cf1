"""Refusal by name of unsupported weights and tokenizers, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.support import ROOT, run_python

from plugin.base.errors import JobError, Problem
from plugin.config.model_files import check_model_files
from plugin.models.tokenizer import load_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that looks like a model's; nothing in it is ever loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "modernbert"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def refused(name: object) -> Problem:
    with pytest.raises(JobError) as caught:
        check_model_files(str(name))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (4, "model_name")
    assert "\n" not in problem.line
    return problem


def with_config(folder: Path, **fields: object) -> Path:
    (folder / "config.json").write_text(
        json.dumps({"model_type": "modernbert", **fields}), encoding="utf-8"
    )
    return folder


def test_complete_model_folder_is_accepted(folder: Path) -> None:
    check_model_files(str(folder))
    check_model_files(str(with_config(folder, quantization_config=None)))


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes",
        ),
        ({"quantization_config": {"_load_in_8bit": True, "load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"bits": 4}}, "a method that it does not name"),
    ],
)
def test_quantised_weights_are_refused_by_method(
    fields: dict[str, object], method: str, folder: Path
) -> None:
    problem = refused(with_config(folder, **fields))
    assert problem.expected == "unquantised weights"
    assert problem.got == f"{folder}, quantised with {method}"
    assert problem.fix == "Name the original model; load_in_4bit quantises it here."


def test_gptq_is_recognised_by_its_own_file(folder: Path) -> None:
    (folder / "quantize_config.json").write_text('{"bits": 4}', encoding="utf-8")
    assert refused(folder).got.endswith("quantised with gptq")


def test_gguf_is_refused_as_inference_format(folder: Path) -> None:
    for name in (folder / "small.Q4_K_M.gguf", "org/repo/small.gguf"):
        assert "GGUF is a format for inference" in refused(name).fix
    (folder / "model.safetensors").rename(folder / "small.Q4_K_M.gguf")
    (folder / "config.json").unlink()
    assert "small.Q4_K_M.gguf, which is GGUF" in refused(folder).got


@pytest.mark.parametrize("pointer", ["model.safetensors", "config.json", "tokenizer.json"])
def test_git_lfs_pointer_error_names_the_command(pointer: str, folder: Path) -> None:
    (folder / pointer).write_text(POINTER, encoding="utf-8")
    problem = refused(folder)
    assert problem.got == f"{folder}: {pointer}, which git-lfs has not fetched"
    assert "git lfs pull" in problem.fix


def test_adapter_given_as_model_names_its_base(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "org/base"}', encoding="utf-8"
    )
    problem = refused(folder)
    assert problem.got == f"{folder}, an adapter of org/base"
    assert problem.fix.startswith("Name org/base as model_name")


def test_missing_or_empty_weights_are_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "model-00002-of-00002.safetensors missing or empty" in refused(folder).got
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    assert "model.safetensors missing or empty" in refused(folder).got


def test_file_given_as_model_is_refused(folder: Path) -> None:
    assert "which is a file" in refused(folder / "model.safetensors").got


def test_refusing_a_model_imports_no_torch(folder: Path) -> None:
    with_config(folder, quantization_config={"quant_method": "awq"})
    code = (
        "import sys\nfrom plugin.config.model_files import check_model_files\n"
        f"try:\n    check_model_files({str(folder)!r})\nexcept ValueError as error:\n    print(error)\n"
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    done = run_python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "quantised with awq" in done.stdout


@pytest.fixture
def slow(tmp_path: Path) -> Callable[[str], Path]:
    def made(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "vocab.txt").write_text(
            "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8"
        )
        settings = {"tokenizer_class": kind, "word_tokenizer_type": "mecab", "mask_token": "[MASK]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        (folder / "config.json").write_text('{"model_type": "modernbert"}', encoding="utf-8")
        return folder

    return made


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        (
            "BertJapaneseTokenizer",
            "BertJapaneseTokenizer, which has no tokenizer.json here (needs fugashi)",
        ),
        ("CanineTokenizer", "CanineTokenizer, which has no tokenizer.json here"),
    ],
)
def test_tokenizer_without_fast_form_is_named(
    kind: str, got: str, slow: Callable[[str], Path]
) -> None:
    with pytest.raises(JobError) as caught:
        load_tokenizer(str(slow(kind)))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (4, "tokenizer_name")
    assert problem.got.endswith(f": {got}")
    assert (
        problem.fix == "Make a tokenizer.json of it, or name another tokenizer in tokenizer_name."
    )


def test_tokenizer_pointer_is_refused(slow: Callable[[str], Path]) -> None:
    folder = slow("BertTokenizer")
    (folder / "vocab.txt").write_text(POINTER, encoding="utf-8")
    with pytest.raises(JobError, match="git-lfs has not fetched"):
        load_tokenizer(str(folder))
    shutil.rmtree(folder)
