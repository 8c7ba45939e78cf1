"""LoRA adapters: adapted layers, other trained weights, and merging into the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.published_checkpoints import write_checkpoint
from helpers.tiny import (
    FAMILIES,
    MASK,
    PAD,
    adapted,
    alone_in,
    assert_same_vector,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_model,
)
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from plugin.assembly.model import make_model
from plugin.base.errors import JobError
from plugin.config.families import DECODERS
from plugin.config.families import FAMILIES as KNOWN
from plugin.config.params import Params
from plugin.models.diffusion import DiffusionModel, logits_of
from plugin.models.load import load_model
from plugin.models.lora import LoraSettings, add_adapter, merged_model, target_layers
from plugin.models.publish import write_model
from plugin.models.tokenizer import load_tokenizer
from plugin.run.facts import ModelFacts
from plugin.training.step import build_step

TEXTS = ["how are you", "fine, thanks", "what is the sun"]
METHODS = {"classic": "bert", "bert": "bert", "llada": "llada", "dream": "dream"}
# Linear layers below the head: two layers of six (BERT) or seven, three of four in ModernBERT.
LAYERS = {"bert": 12, "roberta": 12, "modernbert": 12, "llada": 14, "Dream": 14}
LAYERS |= dict.fromkeys(DECODERS, 14)


def layers_with(model: PeftModel) -> set[str]:
    """Return the names of the layers that have an adapter."""
    names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    return {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_but_the_head_get_adapters(family: str) -> None:
    model = tiny_model(family)
    head = model.get_output_embeddings()
    live = adapted(model, family)
    found = layers_with(live)
    assert len(found) == LAYERS[family]
    assert not any(name.startswith(KNOWN[family].head) for name in found)
    assert live.get_base_model().get_output_embeddings() is head
    assert not head.weight.requires_grad
    trained = {name for name, weight in live.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        (
            "llada",
            "q_proj, v_proj",
            {
                f"model.transformer.blocks.{n}.{part}"
                for n in (0, 1)
                for part in ("q_proj", "v_proj")
            },
        ),
        # `ff_out` names a block's down projection and the head; as a target it never means the head
        ("llada", "ff_out", {f"model.transformer.blocks.{n}.ff_out" for n in (0, 1)}),
        ("Dream", "self_attn.o_proj", {f"model.layers.{n}.self_attn.o_proj" for n in (0, 1)}),
        ("Dream", "model.layers.1.mlp.up_proj", {"model.layers.1.mlp.up_proj"}),
        ("bert", "query", {f"bert.encoder.layer.{n}.attention.self.query" for n in (0, 1)}),
    ],
)
def test_lora_targets_choose_layers_by_name(family: str, targets: str, layers: set[str]) -> None:
    assert layers_with(adapted(tiny_model(family), family, targets=targets)) == layers


@pytest.mark.parametrize(
    ("family", "targets", "absent"),
    [
        ("llada", "q_proj,c_attn", "c_attn"),
        ("Dream", "lm_head", "lm_head"),
        ("bert", "proj", "proj"),
        ("Dream", ",", "nothing"),
        ("Dream", "norm", "norm"),
    ],
)
def test_unknown_lora_target_is_refused_with_known_names(
    family: str, targets: str, absent: str
) -> None:
    with pytest.raises(JobError) as caught:
        target_layers(tiny_model(family), KNOWN[family], targets)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.got) == (2, "lora_targets", absent)
    assert {"bert": "query", "llada": "ff_proj", "Dream": "gate_proj"}[family] in problem.expected


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_is_float32_and_base_keeps_its_dtype(family: str) -> None:
    live = adapted(tiny_model(family).to(torch.bfloat16), family)
    for name, weight in live.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


def test_new_adapter_leaves_logits_unchanged() -> None:
    model, ids = tiny_model("Dream"), torch.tensor([[2, 9, 8, MASK, 7, 3]])
    before = logits_of(model, ids)
    fresh = add_adapter(model, KNOWN["Dream"], LoraSettings(4, 8, 0.0, "auto"), [])
    assert torch.equal(logits_of(fresh, ids), before)
    assert (logits_of(adapted(tiny_model("Dream"), "Dream"), ids) - before).abs().max() > 0.1


def test_alpha_over_rank_scales_the_adapter() -> None:
    """W + alpha / r B A, by hand on one layer."""
    model = tiny_model("llada")
    layer = model.model.transformer["blocks"][0].q_proj
    plain = layer.weight.detach().clone()
    live = adapted(model, "llada", r=2, alpha=6, targets="model.transformer.blocks.0.q_proj")
    tensors = {
        name.split(".lora_")[1][0]: weight.detach()
        for name, weight in live.named_parameters()
        if "lora_" in name
    }
    merged = live.merge_and_unload().model.transformer["blocks"][0].q_proj.weight
    torch.testing.assert_close(
        merged, plain + 3 * tensors["B"] @ tensors["A"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "qlora"])
@pytest.mark.parametrize("method", METHODS)
def test_merged_model_equals_the_trained_model(method: str, four_bit: bool, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", method, TEXTS)
    model = load_model(str(base), four_bit=four_bit)
    plain_ids = torch.arange(60)[None]
    before = logits_of(model, plain_ids)
    live = adapted(model, model.config.model_type)
    write_model(
        tmp_path / "adapter",
        live,
        load_tokenizer(str(base), family=KNOWN[model.config.model_type]),
        ModelFacts(),
    )
    merged = merged_model(str(base), tmp_path / "adapter", four_bit=four_bit, dtype=torch.float32)
    after = logits_of(live, plain_ids)
    assert (after - before).abs().max() > 0.02, "the adapter does something"
    assert (logits_of(merged, plain_ids) - after).abs().max() <= 1e-5
    assert not isinstance(merged, PeftModel)
    assert all("lora" not in name for name, _ in merged.named_parameters())
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(
        logits_of(load_model(str(tmp_path / "merged")), plain_ids), logits_of(merged, plain_ids)
    )
    assert "quantization_config" not in json.loads(
        (tmp_path / "merged" / "config.json").read_text()
    )


def with_new_tokens(
    folder: Path, method: str, **changes: Any
) -> tuple[Path, PreTrainedTokenizerBase, Params]:
    """Return a base, its tokenizer with two new tokens, and the parameters of a LoRA run."""
    base = write_checkpoint(folder / "base", method, TEXTS, **changes)
    params = Params.model_validate(
        {
            "model_name": str(base),
            "training_method": METHODS[method],
            "lora": True,
            "lora_dropout": 0,
        }
    )
    tokenizer = load_tokenizer(
        str(base), family=KNOWN[json.loads((base / "config.json").read_text())["model_type"]]
    )
    assert tokenizer.add_tokens(["<|think|>", "<|act|>"], special_tokens=True) == 2
    return base, tokenizer, params.model_copy(update={"max_length": 64})


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_new_tokens_train_and_survive_merging(method: str, tied: bool, tmp_path: Path) -> None:
    name = "weight_tying" if method == "llada" else "tie_word_embeddings"
    base, tokenizer, params = with_new_tokens(tmp_path, method, **{name: tied})
    live = make_model(params, tokenizer, torch.float32)
    rows = len(tokenizer)
    plain = live.get_base_model()
    assert plain.get_input_embeddings().weight.shape[0] == rows
    ids = torch.tensor([[7, rows - 2, 9, rows - 1, 11]])
    old = torch.tensor([[7, 8, 9, 10, 11]])
    embed_old = plain.get_input_embeddings()(old).detach()
    before = logits_of(live, ids)
    optimizer = torch.optim.AdamW(
        [weight for weight in live.parameters() if weight.requires_grad], lr=1e-2, weight_decay=0.0
    )
    new_rows = plain.get_input_embeddings()(ids)[0, [1, 3]].detach()
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(live(input_ids=ids).logits[0], ids[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (plain.get_input_embeddings()(ids)[0, [1, 3]] - new_rows).abs().max(
        -1
    ).values.min() > 0.01, "new rows train"
    assert torch.equal(plain.get_input_embeddings()(old), embed_old), "the others do not"
    after = logits_of(live, ids)
    assert (after - before)[..., rows - 2 :].abs().max() > 0.05, "the head can say the new words"

    write_model(tmp_path / "adapter", live, tokenizer, ModelFacts())
    merged = merged_model(
        str(base), tmp_path / "adapter", four_bit=False, dtype=torch.float32, tokenizer=tokenizer
    )
    assert (logits_of(merged, ids) - after).abs().max() <= 1e-5
    write_model(tmp_path / "fused", merged, tokenizer, ModelFacts())
    again = load_model(str(tmp_path / "fused"))
    assert again.get_input_embeddings().weight.shape[0] == rows
    assert torch.equal(logits_of(again, ids), logits_of(merged, ids))
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    words = load_tokenizer(str(tmp_path / "fused"), family=KNOWN[again.config.model_type])
    assert words.convert_tokens_to_ids(["<|think|>", "<|act|>"]) == [rows - 2, rows - 1]


def test_new_tokens_train_in_float32_on_bfloat16_base(tmp_path: Path) -> None:
    """At 2e-5 an update of a bfloat16 row would be lost."""
    _, tokenizer, params = with_new_tokens(tmp_path, "dream")
    live = make_model(params, tokenizer, torch.bfloat16)
    trained = {
        name: weight.dtype for name, weight in live.named_parameters() if weight.requires_grad
    }
    assert any("trainable_tokens" in name for name in trained)
    assert {name for name, dtype in trained.items() if dtype != torch.float32} == set()


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_adapter_gradients_equal_those_of_documents_alone(family: str) -> None:
    documents, live = random_documents(8), adapted(tiny_model(family), family)
    (micro_batch,) = build_step(
        slots(8, 8), documents, rules(eos_policy="batch"), batch_size=8
    ).micro_batches
    torch.stack(alone_in(live, micro_batch.batch)).sum().backward()
    wanted = gradient(live)
    live.zero_grad()
    DiffusionModel(live, PAD)(micro_batch.batch).weighted.sum().backward()
    assert_same_vector(gradient(live), wanted, 1e-5)
