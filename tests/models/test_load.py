"""Loading: real folders of every family come back whole, and everything else is refused by name,
with exit code 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import FAMILIES, VOCABULARY, tiny_config, tiny_model, word_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BertModel, GPT2Config, GPT2LMHeadModel

from plugin.assembly.model import base_config
from plugin.base.errors import JobError, Problem
from plugin.config.methods import methods_of
from plugin.config.params import Params
from plugin.data.tokenizer import train_tokenizer
from plugin.models.load import check_method, check_pair, load_model, load_tokenizer, new_model

IDS = torch.tensor([[2, 9, 4, 4, 3]])


def refusal(act: Callable[[], object]) -> Problem:
    with pytest.raises(JobError) as caught:
        act()
    (problem,) = caught.value.problems
    assert problem.code == 4
    return problem


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    fields = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in fields.items() if value is not None})
    )


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    tiny_model("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_with_the_same_logits(
    family: str, tied: bool, tmp_path: Path
) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_half_precision_weights_are_loaded_as_float32(tmp_path: Path) -> None:
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


def test_safetensors_are_read_even_beside_pickled_weights(bert: Path) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"\x80\x04never unpickled")
    assert load_model(str(bert)).config.model_type == "bert"


@pytest.mark.parametrize(
    ("missing", "says"),
    [("config.json", "config.json"), ("model.safetensors", "no weights"), (None, "exists")],
)
def test_an_incomplete_folder_is_refused(bert: Path, missing: str | None, says: str) -> None:
    if missing:
        (bert / missing).unlink()
    problem = refusal(lambda: load_model(str(bert if missing else bert / "nowhere")))
    assert problem.field == "model_name"
    assert says in str(problem)


def test_an_encoder_without_a_head_is_refused_by_its_class(tmp_path: Path) -> None:
    BertModel(tiny_config("bert"), add_pooling_layer=False).save_pretrained(tmp_path)
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert "BertModel" in problem.got
    assert "BertForMaskedLM" in problem.expected


def test_an_encoder_that_claims_a_head_is_refused_with_the_missing_weights_named(
    tmp_path: Path,
) -> None:
    BertModel(tiny_config("bert")).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert "missing" in problem.got
    assert "cls.predictions.transform.dense.weight" in problem.got
    assert problem.fix


def test_foreign_and_misshapen_weights_are_named(bert: Path) -> None:
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


def test_the_pooler_and_sentence_head_of_published_files_are_left_out(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    extra = {
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "cls.seq_relationship.weight": torch.ones(2, 16),
    }
    save_file({**weights, **extra}, bert / "model.safetensors", {"format": "pt"})
    assert load_model(str(bert)).config.model_type == "bert"


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_missing_and_unexpected_weights_of_a_published_family_are_listed(
    family: str, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_another_mask_token_than_the_models_is_refused(family: str) -> None:
    """Trained on one mask and sampled with another, a model would say nothing."""
    config, words = tiny_config(family), word_tokenizer(["a"])
    check_pair(config, words, 16)
    config.mask_token_id = 9
    problem = refusal(lambda: check_pair(config, words, 16))
    assert (problem.field, problem.expected, problem.got) == (
        "tokenizer_name",
        "the model's mask token (id 9)",
        "id 4",
    )


def test_a_causal_model_is_refused_by_family(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    problem = refusal(lambda: load_model(str(tmp_path)))
    assert problem.field == "model_name"
    assert "gpt2" in problem.got
    assert "BertForMaskedLM" in problem.expected


def test_a_broken_configuration_is_one_clear_line(bert: Path) -> None:
    (bert / "config.json").write_text("{not json")
    assert "\n" not in refusal(lambda: load_model(str(bert))).got


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_code_that_comes_with_a_model_is_never_run(
    bert: Path, model_type: str, tmp_path: Path
) -> None:
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


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b"], 300)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    problem = refusal(lambda: load_tokenizer(str(tmp_path)))
    assert "mask token" in str(problem)


def test_a_model_folder_without_a_tokenizer_is_refused(bert: Path) -> None:
    assert refusal(lambda: load_tokenizer(str(bert))).field in (
        "tokenizer_name",
        "model_name",
    )


def test_a_saved_tokenizer_comes_back(tmp_path: Path) -> None:
    word_tokenizer(["how", "are", "you"]).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("how are you")["input_ids"] == [2, 5, 6, 7, 3]


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    def words(count: int) -> Any:
        return word_tokenizer([f"w{number}" for number in range(count - 5)])

    check_pair(tiny_config("bert"), words(VOCABULARY), 16)
    problem = refusal(lambda: check_pair(tiny_config("bert"), words(VOCABULARY + 1), 16))
    assert problem.field == "tokenizer_name"
    assert {"40", "41"} <= set(str(problem).replace("'s", "").split())


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 62), ("modernbert", None)])
def test_max_length_must_fit_learned_positions(family: str, limit: int | None) -> None:
    model, tokenizer = (
        tiny_model(family, pad_token_id=1 if family == "roberta" else 0),
        word_tokenizer(["a"]),
    )
    if limit is None:
        check_pair(model.config, tokenizer, 10_000)
        return
    check_pair(model.config, tokenizer, limit)
    assert model(input_ids=torch.full((1, limit), 9)).logits.isfinite().all()
    problem = refusal(lambda: check_pair(model.config, tokenizer, limit + 1))
    assert problem.field == "max_length"
    assert str(limit) in problem.expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["bert", "llada", "dream"])
def test_a_method_takes_models_of_its_own_families_only(family: str, method: str) -> None:
    own = {"llada": "llada", "Dream": "dream"}.get(family, "bert")
    if method == own:
        check_method(tiny_config(family), method)
        return
    with pytest.raises(JobError) as caught:
        check_method(tiny_config(family), method)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.got) == (2, "training_method", method)
    assert own in problem.expected
    assert f"training_method {own}" in problem.fix


def test_a_new_model_takes_its_special_tokens_from_the_tokenizer(tmp_path: Path) -> None:
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
def test_a_configuration_that_is_none_is_refused(
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
def test_an_odd_field_of_a_configuration_is_refused(
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
def test_what_a_run_decides_itself_is_not_the_configurations(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    edit_config(
        tmp_path, return_dict=False, output_attentions=True, quantization_config={}, auto_map={}
    )
    loaded = load_model(str(tmp_path))
    assert loaded(input_ids=IDS).logits.shape[:2] == IDS.shape
    loaded.save_pretrained(tmp_path / "again")
    assert type(load_model(str(tmp_path / "again"))) is type(loaded)


def test_an_architecture_that_is_no_list_is_refused(bert: Path) -> None:
    edit_config(bert, architectures=3)
    assert "architectures 3" in str(refusal(lambda: load_model(str(bert))))


def test_a_configuration_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_config("bert", vocab_size=5).to_json_file(tmp_path / "config.json")
    problem = refusal(lambda: new_model(str(tmp_path / "config.json"), word_tokenizer(["a"])))
    assert (problem.field, problem.got) == ("model_config", "5")
