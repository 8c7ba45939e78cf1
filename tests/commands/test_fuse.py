"""Fusing: the published folder is the model that was trained, on its own base only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.published_checkpoints import write_checkpoint
from helpers.tiny import adapted
from safetensors.torch import load_file, save_file

from plugin.assembly import fuse as library
from plugin.assembly.fuse import Card, Target, adapter_base, fuse_adapter, publish
from plugin.assembly.verify import Reloaded, main, reload, rendered_prompt
from plugin.base.errors import JobError
from plugin.commands import fuse
from plugin.config.families import FAMILIES as KNOWN
from plugin.config.sampler import SamplerSettings
from plugin.inference.ask import answers, dialogue
from plugin.inference.model import load_for_sampling
from plugin.models.diffusion import logits_of
from plugin.models.load import load_model
from plugin.models.publish import write_model
from plugin.models.tokenizer import load_tokenizer
from plugin.run.facts import ModelFacts, read_facts

METHODS = ("classic", "bert", "llada", "dream")
FACTS = ModelFacts(method="dream", sampler=SamplerSettings(steps=8))
IDS = torch.arange(60)[None]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    texts = ["how are you", "fine, thanks"]
    found = {method: write_checkpoint(folder / method, method, texts) for method in METHODS}
    (found["dream"] / "generation_config.json").write_text('{"temperature": 0.2}')
    return found


def in_this_process(
    folder: Path, ids: torch.Tensor, logits: torch.Tensor, prompt: np.ndarray, dtype: torch.dtype
) -> Reloaded:
    """Compute what the fresh process computes, without starting one."""
    return reload(folder, {"ids": ids, "logits": logits, "prompt": torch.from_numpy(prompt)}, dtype)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "compare_reloaded", in_this_process)


def trained(base: Path, folder: Path, *, four_bit: bool = False, **facts: Any) -> torch.nn.Module:
    """Return a live model with an adapter, saved in `folder` as a run saves it."""
    model = load_model(str(base), four_bit=four_bit)
    family = model.config.model_type
    live = adapted(model, family)
    remembered = adapter_base(str(base), four_bit=four_bit, dtype=torch.float32)
    write_model(
        folder,
        live,
        load_tokenizer(str(base), family=KNOWN[family]),
        FACTS.model_copy(update={"base": remembered, **facts}),
    )
    return live


def target(folder: Path, base: Path, live: torch.nn.Module) -> Target:
    family = KNOWN[json.loads((base / "config.json").read_text())["model_type"]]
    card = Card("mine", {"data": "a|b.jsonl"}, {"eval/loss": 1.25})
    return Target(
        folder, str(base), load_tokenizer(str(base), family=family), FACTS, card, live, IDS
    )


@pytest.mark.end_to_end
def test_a_fused_qlora_model_reloads_as_it_was_trained(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    live = trained(bases["dream"], tmp_path / "adapter", four_bit=True)
    plan = target(tmp_path / "fused", bases["dream"], live)
    fused = fuse_adapter(
        tmp_path / "adapter", plan, four_bit=True, fuse_base="trained", dtype=torch.float32
    )
    assert fused.result.max_logit_difference <= 1e-5
    assert fused.result.content() | {"max_logit_difference": 0} == {
        "path": str(tmp_path / "fused"),
        "fuse_base": "trained",
        "max_logit_difference": 0,
        "differences": fused.differences,
        "chat_template_as_trained": True,
    }


def test_the_fresh_process_would_see_a_difference(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own program, called here: one layer's weights 1.5 times as large must show."""
    model = load_model(str(bases["llada"]))
    prompt = torch.from_numpy(
        rendered_prompt(load_tokenizer(str(bases["llada"]), family=KNOWN["llada"]))
    )
    tensors = {"ids": IDS.contiguous(), "logits": logits_of(model, IDS), "prompt": prompt}
    save_file(tensors, tmp_path / "reference.safetensors")
    shutil.copytree(bases["llada"], tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = "model.transformer.blocks.1.ff_out.weight"
    save_file(
        {**weights, name: weights[name] * 1.5},
        tmp_path / "other" / "model.safetensors",
        {"format": "pt"},
    )
    found = []
    for folder in (bases["llada"], tmp_path / "other"):
        capsys.readouterr()
        assert main(str(folder), str(tmp_path / "reference.safetensors"), "float32") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == {"max_logit_difference": 0, "prompt": True, "template": True}
    assert found[1]["max_logit_difference"] > 1e-3


def test_reload_template_that_writes_the_time_agrees(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """Llama-3's template writes the date: another second is not another layout."""
    model, folder = (
        load_model(str(bases["llada"])),
        Path(shutil.copytree(bases["llada"], tmp_path / "clock")),
    )
    tokenizer = load_tokenizer(str(folder), family=KNOWN["llada"])
    clock = "{{ strftime_now('%H:%M:%S.%f') }}"
    tokenizer.chat_template = (
        f"{clock}{{% for m in messages %}}{{{{ m['content'] }}}}<|eot_id|>{{% endfor %}}"
    )
    tokenizer.save_pretrained(folder)
    prompt = torch.from_numpy(rendered_prompt(tokenizer))
    tensors = {"ids": IDS, "logits": logits_of(model, IDS), "prompt": prompt}
    assert reload(folder, tensors, torch.float32) == Reloaded(0.0, prompt=True, template=True)


def test_reload_other_prompt_layout_is_seen(bases: dict[str, Path], tmp_path: Path) -> None:
    """A lost or replaced template prompts the model in a layout that it never saw."""
    model = load_model(str(bases["llada"]))
    prompt = torch.from_numpy(
        rendered_prompt(load_tokenizer(str(bases["llada"]), family=KNOWN["llada"]))
    )
    folder = Path(shutil.copytree(bases["llada"], tmp_path / "other"))
    tokenizer = load_tokenizer(str(folder), family=KNOWN["llada"])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    tensors = {"ids": IDS, "logits": logits_of(model, IDS), "prompt": prompt}
    assert reload(folder, tensors, torch.float32) == Reloaded(0.0, prompt=False, template=False)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_a_fully_trained_model_is_published_as_it_is(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(str(bases[method]))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert (
        publish(model, target(tmp_path / "fused", bases[method], model)).max_logit_difference
        <= 1e-5
    )
    assert (
        logits_of(load_model(str(bases[method])), IDS) - logits_of(model, IDS)
    ).abs().max() > 0.02


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", METHODS)
def test_merging_onto_the_original_reports_both_differences(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    live = trained(bases[method], tmp_path / "adapter", four_bit=True)
    plan = target(tmp_path / "fused", bases[method], live)
    fused = fuse_adapter(
        tmp_path / "adapter", plan, four_bit=True, fuse_base="original", dtype=torch.float32
    )
    assert set(fused.differences) == {"original", "trained"}
    assert fused.differences["trained"] <= 1e-5
    assert fused.differences["original"] > 1e-3, "the quantisation error is back"
    assert fused.result.max_logit_difference == fused.differences["original"]


@pytest.mark.usefixtures("quick")
def test_a_published_folder_holds_all_that_it_needs(bases: dict[str, Path], tmp_path: Path) -> None:
    live = trained(bases["dream"], tmp_path / "adapter")
    plan = target(tmp_path / "fused", bases["dream"], live)
    fuse_adapter(
        tmp_path / "adapter", plan, four_bit=False, fuse_base="trained", dtype=torch.float32
    )
    names = {file.name for file in (tmp_path / "fused").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "diffusion.json",
        "README.md",
        "generation_config.json",
    } <= names
    assert not [name for name in names if name.startswith("adapter") or name.endswith(".bin")]
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_dream.DreamModel"
    assert "modeling_dream.py" in names, (
        "the base named a file that it does not hold: ours takes its place"
    )
    assert json.loads((tmp_path / "fused" / "generation_config.json").read_text()) == {
        "temperature": 0.2
    }
    assert read_facts(tmp_path / "fused") == FACTS
    card = (tmp_path / "fused" / "README.md").read_text()
    assert "| data | a\\|b.jsonl |" in card
    assert "| eval/loss | 1.2500 |" in card
    assert "pipeline_tag: text-generation" in card
    assert "largest logit difference after reloading |" in card
    assert load_tokenizer(str(tmp_path / "fused"), family=KNOWN["Dream"]).chat_template
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def earlier(*words: object) -> int:
    return fuse.main([str(word) for word in words])


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "qlora"])
@pytest.mark.parametrize("method", ["bert", "llada", "dream"])
def test_an_adapter_trained_earlier_is_fused_from_its_folder(
    method: str,
    four_bit: bool,
    bases: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = bases[method], tmp_path / "deep" / "fused"
    live = trained(base, tmp_path / "run" / "adapter", four_bit=four_bit)
    capsys.readouterr()
    assert (
        earlier("--adapter", tmp_path / "run", "--model_name", base, "--out", out, "--json") == 0
    )  # the run's folder
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["fuse_base"]) == (str(out), "trained")
    assert shown["max_logit_difference"] <= 1e-5
    assert (logits_of(load_model(str(out)), IDS) - logits_of(live, IDS)).abs().max() <= 1e-5
    assert read_facts(out) == FACTS, "how it was trained, without which base it remembers"


@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "qlora"])
def test_an_adapters_folder_chats_on_the_base_it_remembers(
    four_bit: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    live = trained(
        bases["llada"],
        tmp_path / "adapter",
        four_bit=four_bit,
        sampler=SamplerSettings(block_length=4, steps=4),
    )
    (tmp_path / "run.json").write_text(json.dumps({"params": {"model_name": str(bases["llada"])}}))
    loaded = load_for_sampling(str(tmp_path / "adapter"), {"max_new_tokens": 8})
    assert (logits_of(loaded.model, IDS) - logits_of(live, IDS)).abs().max() <= 1e-5
    assert (loaded.settings.block_length, loaded.settings.max_new_tokens) == (4, 8)
    (answer,) = answers(loaded, [dialogue("how are you")])
    assert answer.steps > 0


def test_adapter_alone_needs_its_base_named(bases: dict[str, Path], tmp_path: Path) -> None:
    """Without its run it knows its base by name and digest only, and no path."""
    live = trained(bases["llada"], tmp_path / "given" / "adapter")
    folder = str(tmp_path / "given" / "adapter")
    for file in Path(folder).glob("*.json"):
        assert str(bases["llada"].parent) not in file.read_text(), file.name
    with pytest.raises(
        JobError,
        match=r"base: expected the model that .* got llada, which is not here\. Name it with --base",
    ):
        load_for_sampling(folder)
    with pytest.raises(JobError, match=r"adapter: expected an adapter of .*dream"):
        load_for_sampling(folder, base=str(bases["dream"]))
    loaded = load_for_sampling(folder, base=str(bases["llada"]))
    assert (logits_of(loaded.model, IDS) - logits_of(live, IDS)).abs().max() <= 1e-5


def refusal(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    capsys.readouterr()
    assert earlier(*words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error[")]
    assert line.startswith(f"error[{code}]: ")
    return line


def test_an_adapter_of_other_weights_is_refused(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(bases["llada"], tmp_path / "adapter")
    other = write_checkpoint(tmp_path / "other", "llada", ["how are you", "fine, thanks"], seed=1)
    line = refusal(
        capsys,
        4,
        "--adapter",
        tmp_path / "adapter",
        "--model_name",
        other,
        "--out",
        tmp_path / "out",
    )
    assert f"adapter: expected an adapter of {other}" in line
    assert f"trained on {bases['llada'].name}" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", [{"hidden_size": 32}, {"num_hidden_layers": 1}], ids=["narrower", "shallower"]
)
def test_an_adapter_of_other_shapes_is_refused_by_layer(
    change: dict[str, int],
    bases: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that records no base, as other tools write them."""
    trained(bases["dream"], tmp_path / "adapter")
    (tmp_path / "adapter" / "diffusion.json").unlink()
    other = write_checkpoint(tmp_path / "other", "dream", ["how are you", "fine, thanks"], **change)
    line = refusal(
        capsys,
        4,
        "--adapter",
        tmp_path / "adapter",
        "--model_name",
        other,
        "--out",
        tmp_path / "out",
    )
    assert "adapter: expected an adapter of" in line
    assert "model.layers." in line
    assert f"made for {bases['dream'].name}" in line


def test_an_adapter_of_another_family_or_none_at_all_is_refused(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(bases["dream"], tmp_path / "adapter")
    words = ("--model_name", bases["llada"], "--out", tmp_path / "out")
    assert "adapter" in refusal(capsys, 4, "--adapter", tmp_path / "adapter", *words)
    (tmp_path / "empty").mkdir()
    line = refusal(capsys, 4, "--adapter", tmp_path / "empty", *words)
    assert "adapter_model.safetensors" in line


def test_a_folder_that_holds_something_is_never_overwritten(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(bases["dream"], tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    words = (
        "--adapter",
        tmp_path / "adapter",
        "--model_name",
        bases["dream"],
        "--out",
        tmp_path / "out",
    )
    assert "out: expected a new or empty folder" in refusal(capsys, 2, *words)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years"


def test_checkpoint_is_published_without_its_optimizer(
    bases: dict[str, Path], tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(bases["llada"], tmp_path / "checkpoint-7"))
    for name in ("optimizer.safetensors", "state.json"):
        (checkpoint / name).write_bytes(b"x")
    assert earlier("--checkpoint", checkpoint, "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["max_logit_difference"] <= 1e-5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "README.md"} <= names
    assert not {"optimizer.safetensors", "state.json"} & names


def test_checkpoint_of_an_adapter_is_refused_with_a_fix(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(bases["bert"], tmp_path / "checkpoint-7")
    assert earlier("--checkpoint", tmp_path / "checkpoint-7", "--out", tmp_path / "out") == 4
    assert "Give it as --adapter" in capsys.readouterr().err
    assert earlier("--adapter", tmp_path / "checkpoint-7", "--out", tmp_path / "out") == 2
    assert "error[2]: model_name: " in capsys.readouterr().err
