"""Weight files of a model: the checked ones alone, whatever else its folder holds or names."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.support import TINY_CONFIG, RunsWhenLoaded, run_main
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from plugin.base.errors import Code, JobError, Problem
from plugin.config.model_files import check_model_files
from plugin.models.checks.digest import base_digest
from plugin.models.configuration import load_config, new_config
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
OTHER = "pytorch_model.bin"


def refused(act: Callable[[], object], field: str = "model_name") -> Problem:
    with pytest.raises(JobError) as caught:
        act()
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == (field, Code.MODEL)
    return problem


def logits(folder: Path) -> torch.Tensor:
    return load_model(str(folder))(input_ids=torch.arange(40)[None]).logits


def shard(folder: Path, *names: str) -> Path:
    """Split model.safetensors into files of these names, with an index."""
    weights = load_file(folder / WHOLE)
    place = {key: names[number % len(names)] for number, key in enumerate(weights)}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        part = {key: value for key, value in weights.items() if place[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / WHOLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}), encoding="utf-8")
    return folder


def test_index_of_safetensors_loads_the_same_model(tiny_bert: Path, model_copy: Path) -> None:
    wanted = logits(tiny_bert)
    shard(model_copy, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert torch.equal(logits(model_copy), wanted)


def test_pickle_named_by_index_is_refused(model_copy: Path, tmp_path: Path) -> None:
    """Audit 5: a `.bin` was loaded through an index next to a decoy.safetensors."""
    mark = tmp_path / "mark-of-a-pickle"
    weights = load_file(model_copy / WHOLE)
    (model_copy / WHOLE).rename(model_copy / "decoy.safetensors")
    torch.save(weights, model_copy / "kind.bin")
    (model_copy / "evil.bin").write_bytes(pickle.dumps(RunsWhenLoaded(mark)))
    for name in ("kind.bin", "evil.bin"):
        (model_copy / INDEX).write_text(
            json.dumps({"weight_map": dict.fromkeys(weights, name)}), encoding="utf-8"
        )
        for act in (
            lambda: check_model_files(str(model_copy)),
            lambda: load_model(str(model_copy)),
        ):
            assert refused(act).got == f"{model_copy}: {name}"
    assert not mark.is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "../other/model.safetensors",
        "sub/model.safetensors",
        "/model.safetensors",
        ".safetensors",
        7,
    ],
)
def test_index_naming_other_folders_is_refused(
    tiny_bert: Path, model_copy: Path, name: object
) -> None:
    """Audit 6: it loaded another folder's weights, which the digest did not cover."""
    shutil.copytree(tiny_bert, model_copy.parent / "other")
    keys = load_file(model_copy / WHOLE)
    (model_copy / WHOLE).rename(model_copy / "decoy.safetensors")
    (model_copy / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(keys, name)}), encoding="utf-8"
    )
    for act in (check_model_files, load_model, base_digest):
        assert refused(lambda act=act: act(str(model_copy))).got == f"{model_copy}: {name}"


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "nonsense", "[" * 5000]
)
def test_index_without_names_is_refused(model_copy: Path, index: str) -> None:
    (model_copy / WHOLE).rename(model_copy / "decoy.safetensors")
    (model_copy / INDEX).write_text(index, encoding="utf-8")
    assert refused(lambda: check_model_files(str(model_copy))).got.endswith(
        "whose weight_map names none"
    )


def test_other_files_in_the_folder_are_not_loaded(tiny_bert: Path, model_copy: Path) -> None:
    """An adapter was applied silently, and shards of torch's own kind were loaded instead."""
    wanted, digest = logits(tiny_bert), base_digest(str(tiny_bert))
    adapted = get_peft_model(
        load_model(str(tiny_bert)), LoraConfig(target_modules=["Wqkv"], init_lora_weights=False)
    )
    adapted.save_pretrained(str(model_copy))
    noise = {key: torch.randn_like(value) for key, value in load_file(model_copy / WHOLE).items()}
    save_file(
        noise,
        model_copy / "shard-00001-model-00001-of-00001.safetensors",
        metadata={"format": "pt"},
    )
    torch.save(noise, model_copy / OTHER)
    assert torch.equal(logits(model_copy), wanted)
    assert base_digest(str(model_copy)) == digest, "the digest covers what is loaded"


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "kernels-community/x"},
        {"_attn_implementation": "kernels-community/x"},
        {"attn_implementation": {"": "kernels-community/x"}},
        {"experts_implementation": "somebody/x"},
        {"transformers_weights": OTHER},
        {"transformers_weights": "other.safetensors"},
    ],
    ids=str,
)
def test_config_naming_code_or_weights_is_refused(
    model_copy: Path, asked: dict[str, object]
) -> None:
    """Audit 22: with the package `kernels` installed, a repository in config.json would be run."""
    config = model_copy / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text(encoding="utf-8")), **asked}), encoding="utf-8"
    )
    (name,) = asked
    assert name.lstrip("_") in refused(lambda: load_config(str(model_copy))).got
    fresh = model_copy.parent / "fresh.json"
    fresh.write_text(json.dumps({**TINY_CONFIG, **asked}), encoding="utf-8")
    assert name.lstrip("_") in refused(lambda: new_config(str(fresh)), "model_config").got


def test_config_attention_choice_is_dropped(tiny_bert: Path, model_copy: Path) -> None:
    config = model_copy / "config.json"
    fields = {
        **json.loads(config.read_text(encoding="utf-8")),
        "attn_implementation": "flash_attention_2",
    }
    config.write_text(json.dumps(fields), encoding="utf-8")
    assert (
        load_model(str(model_copy)).config._attn_implementation
        == load_model(str(tiny_bert)).config._attn_implementation
    )


def test_tokenizer_config_cannot_name_other_files(tiny_bert: Path, model_copy: Path) -> None:
    """Not in the audit: transformers reads the folder's own tokenizer.json, whatever is named."""
    foreign = model_copy.parent / "foreign"
    shutil.copytree(tiny_bert, foreign)
    tokens = json.loads((foreign / "tokenizer.json").read_text(encoding="utf-8"))
    tokens["added_tokens"] += [
        {**tokens["added_tokens"][0], "id": len(tokens["model"]["vocab"]), "content": "[FOREIGN]"}
    ]
    (foreign / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    config = model_copy / "tokenizer_config.json"
    fields = {
        **json.loads(config.read_text(encoding="utf-8")),
        "tokenizer_file": str(foreign / "tokenizer.json"),
    }
    config.write_text(json.dumps(fields), encoding="utf-8")
    assert load_tokenizer(str(model_copy)).get_vocab() == load_tokenizer(str(tiny_bert)).get_vocab()


COPIED = [
    "generation_config.json",
    "modeling_x.py",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
]


@pytest.mark.parametrize("name", COPIED)
def test_link_out_of_the_model_folder_is_refused(model_copy: Path, name: str) -> None:
    """Not in the audit: a link to credentials would be published with the fused model."""
    secret = model_copy.parent / "credentials.json"
    secret.write_text("{}", encoding="utf-8")
    link = model_copy / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(secret)
    got = f"{model_copy}: {name}, which leads elsewhere"
    assert refused(lambda: check_model_files(str(model_copy))).got == got
    assert refused(lambda: load_tokenizer(str(model_copy))).got == got


def test_links_within_a_hub_cache_are_accepted(model_copy: Path) -> None:
    cache = model_copy.parent / "models--somebody--tiny"
    (cache / "blobs").mkdir(parents=True)
    shutil.move(model_copy, cache / "snapshots" / "0123")
    snapshot = cache / "snapshots" / "0123"
    (snapshot / "generation_config.json").write_text("{}", encoding="utf-8")
    for number, file in enumerate(sorted(path for path in snapshot.iterdir() if path.is_file())):
        blob = cache / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))
    check_model_files(str(snapshot))
    assert logits(snapshot).isfinite().all()


@pytest.mark.end_to_end
def test_check_refuses_pickle_named_by_index(model_copy: Path, pairs_file: Path) -> None:
    keys = load_file(model_copy / WHOLE)
    (model_copy / WHOLE).rename(model_copy / "decoy.safetensors")
    mark = model_copy.parent / "mark-of-a-pickle"
    (model_copy / "evil.bin").write_bytes(pickle.dumps(RunsWhenLoaded(mark)))
    (model_copy / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(keys, "evil.bin")}), encoding="utf-8"
    )
    done = run_main(
        "check", "--model_name", model_copy, "--dataset_name", pairs_file, cwd=model_copy.parent
    )
    assert done.returncode == Code.MODEL, done.stderr
    assert not mark.is_symlink()
