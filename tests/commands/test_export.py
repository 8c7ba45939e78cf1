"""`export`: the SDAR layout of a Qwen3 block model, and the models that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.causal_lm import END, START, STOP, write_causal_lm
from helpers.support import run_python
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from plugin.base.errors import JobError
from plugin.commands.export import main, refuse_other_models
from plugin.config.families import FAMILIES
from plugin.inference.model import know_model
from plugin.models.configuration import attention_pattern, block_facts, set_attention
from plugin.models.decoders.sdar import MASK_ID, warning_of_mask
from plugin.models.diffusion import logits_of
from plugin.models.load import fit_to_tokenizer, load_model
from plugin.models.publish import write_card, write_model
from plugin.models.tokenizer import load_tokenizer
from plugin.run.facts import BlockFacts, ModelFacts

BLOCK = BlockFacts(size=8)
IDS = torch.arange(3, 33)[None]
ROPE = {"rope_theta": 1e6, "rope_type": "default"}


def write_block_model(folder: Path, family: str = "qwen3", block: BlockFacts = BLOCK) -> Path:
    """Write a fused block model, its rotary base Qwen3's."""
    base = write_causal_lm(
        folder / "base", family, special=(END, START, STOP), spare=9, rope_parameters=ROPE
    )
    tokenizer = load_tokenizer(str(base), family=FAMILIES[family])
    model = load_model(str(base))
    set_attention(model.config, "block", block)
    fit_to_tokenizer(model, tokenizer)
    facts = ModelFacts(method="block", block=block)
    write_model(folder / "fused", model, tokenizer, facts, base=str(base))
    write_card(folder / "fused", {"name": "f", "method": "block", "table": {}, "metrics": {}})
    return folder / "fused"


def fields_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_an_exported_model_is_the_source_in_sdars_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_block_model(tmp_path), tmp_path / "out"
    assert main([str(source), "--format", "sdar", "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["max_logit_difference"] < 1e-5
    assert "warning: The mask token is id 279." in said.err

    fields = fields_of(out)
    assert (fields["architectures"], fields["model_type"]) == (["SDARForCausalLM"], "sdar")
    assert (fields["block_size"], fields["mask_token_id"], fields["head_dim"]) == (8, 279, 8)
    assert (fields["attention_bias"], fields["tie_word_embeddings"]) == (False, True)
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (1, 2)
    assert fields["sliding_window"] is None
    # The trap: transformers 5 has no rope_theta, and engines then take 10,000.
    assert "rope_theta" not in fields_of(source)
    assert fields.get("rope_theta", 10_000) == 1e6
    assert yaml.safe_load((out / "sglang.yaml").read_text()) == {"block_size": 8}
    card = (out / "README.md").read_text()
    assert "**Warning.** The mask token is id 279." in card
    assert "--dllm-algorithm-config FOLDER/sglang.yaml" in card
    assert "--dllm-block-length 8" in card
    assert "untested here" in card

    plain = (
        "import sys; from transformers import AutoConfig;"
        f"config = AutoConfig.from_pretrained({str(out)!r}, trust_remote_code=True);"
        "print(getattr(config, 'rope_theta', 10000), config.block_size, config.mask_token_id,"
        " 'plugin' in sys.modules)"
    )
    home = {"HF_HOME": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "code")}
    done = run_python(plain, cwd=tmp_path, env=home)
    assert done.stdout.split() == ["1000000.0", "8", "279", "False"], done.stderr

    again = load_model(str(out))
    assert torch.equal(logits_of(again, IDS), logits_of(load_model(str(source)), IDS))
    known = know_model(str(out))
    assert (attention_pattern(known.config), block_facts(known.config)) == ("block", BLOCK)
    assert known.chat.mask_id == 279


def test_an_sdar_folder_that_is_trained_on_stays_one(tmp_path: Path) -> None:
    """Another base of its rotary positions reaches the field that engines read."""
    source = write_block_model(tmp_path, "sdar")
    model = load_model(str(source))
    model.config.rope_parameters["rope_theta"] = 5e6
    tokenizer = load_tokenizer(str(source), family=FAMILIES["sdar"])
    write_model(tmp_path / "next", model, tokenizer, ModelFacts(), base=str(source))
    fields = fields_of(tmp_path / "next")
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 5e6
    assert fields["auto_map"] == {"AutoConfig": "configuration_sdar.SDARConfig"}
    assert (tmp_path / "next" / "configuration_sdar.py").is_file()
    assert (tmp_path / "next" / "sglang.yaml").read_text() == "block_size: 8\n"


def test_scaled_positions_keep_the_field_of_older_engines(tmp_path: Path) -> None:
    scaled = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    base = write_causal_lm(tmp_path, "sdar", rope_parameters=scaled)
    fields = fields_of(base)
    assert fields["rope_theta"] == 1e6
    assert fields["rope_scaling"] == {k: v for k, v in scaled.items() if k != "rope_theta"}
    assert load_model(str(base)).config.rope_parameters == scaled


@pytest.mark.parametrize(
    ("family", "block", "says"),
    [
        ("llama", BLOCK, ["a Qwen3 model"]),
        ("qwen3", None, ["a model that is denoised block by block"]),
        (
            "qwen2",
            BlockFacts(size=4, clean_context="causal", shift=True),
            ["a Qwen3 model", "clean_context block", "block_shift false"],
        ),
    ],
)
def test_other_models_are_refused_with_every_reason(
    family: str, block: BlockFacts | None, says: list[str], tmp_path: Path
) -> None:
    model = load_model(str(write_causal_lm(tmp_path, family)))
    model.config.mask_token_id = 4
    if block:
        set_attention(model.config, "block", block)
    with pytest.raises(JobError) as caught:
        refuse_other_models(model.config, "m")
    assert [problem.expected for problem in caught.value.problems] == says
    assert {(problem.field, problem.code) for problem in caught.value.problems} == {("model", 4)}


def test_the_mask_of_the_engines_needs_no_warning() -> None:
    assert warning_of_mask(MASK_ID) == ""
    assert str(MASK_ID) in warning_of_mask(7)


def test_cards_say_what_plain_transformers_does_with_blocks(tmp_path: Path) -> None:
    card = (write_block_model(tmp_path, "llama") / "README.md").read_text()
    assert "denoised block by block, 8 tokens at a time" in card
    assert "AutoModelForCausalLM.from_pretrained(FOLDER)" in card
    assert "knows nothing of blocks" in card
    assert "Serving" not in card
    assert "predicts token i." in card


@pytest.mark.parametrize(("context", "shift"), [("causal", False), ("block", True)])
def test_what_engines_would_sample_otherwise_has_no_serving(
    context: Any, shift: bool, tmp_path: Path
) -> None:
    block = BlockFacts(size=8, clean_context=context, shift=shift)
    card = (write_block_model(tmp_path, "sdar", block) / "README.md").read_text()
    assert "Serving" not in card
    assert ("predicts token i + 1." in card) == shift
    assert ("sees itself and the tokens before it" in card) == (context == "causal")


@pytest.mark.parametrize("method", ["llada", "causal"])
def test_an_sdar_folder_without_blocks_loads_as_its_card_says(method: str, tmp_path: Path) -> None:
    source = write_block_model(tmp_path, "sdar")
    model = load_model(str(source))
    set_attention(model.config, method)
    out = tmp_path / "out"
    tokenizer = load_tokenizer(str(source), family=FAMILIES["sdar"])
    write_model(out, model, tokenizer, ModelFacts(method=method), base=str(source))
    write_card(out, {"name": "f", "method": method, "table": {}, "metrics": {}})
    assert not (out / "sglang.yaml").exists()
    card = (out / "README.md").read_text()
    assert "AutoModelForCausalLM" not in card
    assert "`Qwen3ForCausalLM.from_pretrained(FOLDER)`" in card
    assert "`PreTrainedTokenizerFast.from_pretrained(FOLDER)`" in card
    again: Any = Qwen3ForCausalLM.from_pretrained(out)
    words = PreTrainedTokenizerFast.from_pretrained(out)
    plain: Any = model
    assert torch.equal(again(IDS).logits, plain(IDS).logits)
    assert words.mask_token_id == 279
