"""Configurations of models: their families and fields; all else is refused with exit 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import FAMILIES, new_model, tiny_config, tiny_model, word_tokenizer
from transformers import BertModel, GPT2Config, GPT2LMHeadModel

from plugin.assembly.model import base_config
from plugin.base.errors import JobError
from plugin.config.families import DECODERS
from plugin.config.methods import methods_of
from plugin.config.params import Params
from plugin.models.configuration import check_family_method
from plugin.models.load import load_model
from tests.models.refusals import edit_config, refusal

IDS = torch.tensor([[2, 9, 4, 4, 3]])


def test_encoder_without_head_is_refused_by_class(tmp_path: Path) -> None:
    BertModel(tiny_config("bert"), add_pooling_layer=False).save_pretrained(tmp_path)
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert "BertModel" in problem.got
    assert "BertForMaskedLM" in problem.expected


def test_causal_model_is_refused_by_family(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert problem.field == "model_name"
    assert "gpt2" in problem.got
    assert "BertForMaskedLM" in problem.expected


def test_broken_configuration_is_one_line(bert: Path) -> None:
    (bert / "config.json").write_text("{not json")
    assert "\n" not in refusal(lambda: load_model(str(bert))).got


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["bert", "llada", "dream"])
def test_method_accepts_its_own_families_only(family: str, method: str) -> None:
    others = dict.fromkeys(("llada", *DECODERS), "llada") | {"Dream": "dream"}
    own = others.get(family, "bert")
    if method == own:
        check_family_method(tiny_config(family), method)
        return
    with pytest.raises(JobError) as caught:
        check_family_method(tiny_config(family), method)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.got) == (2, "training_method", method)
    assert own in problem.expected
    assert f"training_method {own}" in problem.fix


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "readable"),
        ("[]", "list"),
        ('{"model_type": "gpt2"}', "gpt2"),
        ("{}", "None"),
        (None, "readable"),
    ],
)
def test_file_that_is_no_configuration_is_refused(
    content: str | None, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    problem = refusal(lambda: new_model(str(tmp_path / "config.json"), word_tokenizer(["a"])))
    assert problem.field == "model_config"
    assert says in str(problem)


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("llada", {"vocab_size": []}, "values of the right kind, got"),
        ("llada", {"vocab_size": True}, "vocab_size True"),
        ("Dream", {"num_attention_heads": "4"}, "num_attention_heads '4'"),
        ("llada", {"problem_type": 3}, "problem_type 3"),
        ("Dream", {"num_attention_heads": 26}, "num_attention_heads=26."),
        ("llada", {"alibi": True}, "alibi=True"),
        (
            "bert",
            {"type_vocab_size": 0},
            "no element in bert.embeddings.token_type_embeddings.weight",
        ),
        ("bert", {"save_pretrained": {}}, "fields of a configuration"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("roberta", {"chunk_size_feed_forward": []}, "chunk_size_feed_forward []"),
        ("Dream", {"auto_map": 3}, "an object in auto_map"),
        ("bert", {"quantization_config": [60]}, "unquantised weights"),
    ],
)
@pytest.mark.parametrize("scratch", [True, False])
def test_configuration_with_wrong_value_is_refused(
    family: str, fields: dict[str, Any], says: str, scratch: bool, tmp_path: Path
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    edit_config(tmp_path, **fields)
    words = word_tokenizer([chr(97 + place) for place in range(26)])
    named = (
        {"model_config": str(tmp_path / "config.json")}
        if scratch
        else {"model_name": str(tmp_path)}
    )
    params = Params.model_validate(
        {**named, "training_method": methods_of(family)[0], "max_length": 16}
    )
    problem = refusal(lambda: base_config(params, words))
    assert problem.field == ("model_config" if scratch else "model_name")
    assert says in str(problem)
    assert ".." not in str(problem)


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_cannot_set_what_a_run_decides(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    edit_config(
        tmp_path, return_dict=False, output_attentions=True, quantization_config={}, auto_map={}
    )
    loaded = load_model(str(tmp_path))
    assert loaded(input_ids=IDS).logits.shape[:2] == IDS.shape
    loaded.save_pretrained(tmp_path / "again")
    assert type(load_model(str(tmp_path / "again"))) is type(loaded)


def test_architectures_that_are_no_list_are_refused(bert: Path) -> None:
    edit_config(bert, architectures=3)
    assert "architectures 3" in str(refusal(lambda: load_model(str(bert))))
