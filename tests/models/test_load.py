"""Loading of models: every family loads in full, all else is refused with exit 4."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.tiny import FAMILIES, new_model, tiny_config, tiny_model, word_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BertModel

from plugin.base.errors import JobError
from plugin.data.tokenizer import train_tokenizer
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer
from tests.models.refusals import edit_config, refusal

IDS = torch.tensor([[2, 9, 4, 4, 3]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_with_equal_logits(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    tiny_model("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_model(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropout_is_switched_off(family: str, tmp_path: Path) -> None:
    rates = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
    if family == "modernbert":
        rates = ["attention_dropout", "embedding_dropout", "mlp_dropout"]
    if family in ("llada", "Dream"):
        rates = ["attention_dropout"]
    config = tiny_config(family, **dict.fromkeys(rates, 0.5))
    type(tiny_model(family))(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path)).train()
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} <= {0.0}
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_pickled_weights_are_refused_unopened(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(b"\x80\x04never unpickled")
    problem = refusal(lambda: load_model(str(bert)))
    assert problem.field == "model_name"
    assert "pytorch_model.bin" in problem.got
    assert "safetensors" in problem.expected
    assert problem.fix


def test_safetensors_load_despite_pickled_weights(bert: Path) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"\x80\x04never unpickled")
    assert load_model(str(bert)).config.model_type == "bert"


@pytest.mark.parametrize(
    ("missing", "says"),
    [("config.json", "config.json"), ("model.safetensors", "no weights"), (None, "exists")],
)
def test_incomplete_folder_is_refused(bert: Path, missing: str | None, says: str) -> None:
    if missing:
        (bert / missing).unlink()
    problem = refusal(lambda: load_model(str(bert if missing else bert / "nowhere")))
    assert problem.field == "model_name"
    assert says in str(problem)


def test_encoder_claiming_a_head_is_refused_by_weights(
    tmp_path: Path,
) -> None:
    BertModel(tiny_config("bert")).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert "missing" in problem.got
    assert "cls.predictions.transform.dense.weight" in problem.got
    assert problem.fix


def test_unexpected_and_misshapen_weights_are_named(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file(
        {**weights, "bert.extra.weight": torch.ones(2)},
        bert / "model.safetensors",
        {"format": "pt"},
    )
    assert "unexpected bert.extra.weight" in refusal(lambda: load_model(str(bert))).got
    save_file(
        {**weights, name: weights[name][:, :-1].contiguous()},
        bert / "model.safetensors",
        {"format": "pt"},
    )
    assert name in refusal(lambda: load_model(str(bert))).got


def test_published_pooler_and_sentence_head_are_ignored(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    extra = {
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "cls.seq_relationship.weight": torch.ones(2, 16),
    }
    save_file({**weights, **extra}, bert / "model.safetensors", {"format": "pt"})
    assert load_model(str(bert)).config.model_type == "bert"


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_published_family_lists_wrong_weights(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = sorted(name for name in weights if "q_proj.weight" in name)
    kept = {name: tensor for name, tensor in weights.items() if name not in lost}
    save_file(
        {**kept, "model.vision.weight": torch.ones(2)},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert len(lost) == 2
    assert f"missing {', '.join(lost)}; unexpected model.vision.weight" in problem.got


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_code_in_a_model_folder_never_runs(bert: Path, model_type: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    (bert / "evil.py").write_text(f"open({str(sentinel)!r}, 'w')\nclass Evil: pass\n")
    names = {"AutoConfig": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil"}
    edit_config(bert, auto_map=names, model_type=model_type)
    tokenizer = {
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "tokenizer_class": "Evil",
    }
    (bert / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if model_type == "bert":
        assert type(load_model(str(bert))).__module__.startswith("transformers.")
    else:
        assert refusal(lambda: load_model(str(bert))).field == "model_name"
    with suppress(JobError):
        load_tokenizer(str(bert))
    assert not sentinel.exists()


def test_new_model_has_the_tokenizers_special_tokens(tmp_path: Path) -> None:
    config, tokenizer = tmp_path / "config.json", train_tokenizer(["a"], 300)
    tiny_config(
        "modernbert", vocab_size=320, pad_token_id=9, sep_token_id=9, attention_dropout=0.5
    ).to_json_file(config)
    torch.manual_seed(3)
    model = new_model(str(config), tokenizer)
    assert (model.config.pad_token_id, model.config.cls_token_id, model.config.sep_token_id) == (
        0,
        2,
        3,
    )
    assert model.config.attention_dropout == 0
    torch.manual_seed(3)
    again = new_model(str(config), tokenizer)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    model.save_pretrained(tmp_path / "saved")
    assert load_model(str(tmp_path / "saved")).config.model_type == "modernbert"


def test_configuration_smaller_than_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_config("bert", vocab_size=5).to_json_file(tmp_path / "config.json")
    problem = refusal(lambda: new_model(str(tmp_path / "config.json"), word_tokenizer(["a"])))
    assert (problem.field, problem.got) == ("model_config", "5")
