"""Mask token of causal LMs: its choice, its row, its training under LoRA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.causal_lm import END, MARKERS, START, STOP, causal_tokenizer, write_causal_lm
from helpers.tiny import tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from plugin.assembly.model import make_model
from plugin.config.families import FAMILIES
from plugin.config.params import Params
from plugin.models.decoders.mask_token import name_mask_token, settle_row
from plugin.models.diffusion import logits_of
from plugin.models.load import fit_to_tokenizer, load_model
from plugin.models.lora import merged_model
from plugin.models.publish import write_model
from plugin.models.tokenizer import check_pair, load_tokenizer
from plugin.run.facts import ModelFacts
from tests.models.refusals import refusal

PLAIN = (END, START, STOP)
QWEN3 = (*PLAIN, "<tool_response>", "</think>")
RESERVED = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
IDS = torch.tensor([[7, 9, 20, 11, 30]])


def parameters(folder: Path, **changes: object) -> Params:
    values = {"training_method": "llada", "lora": True, "lora_dropout": 0, "max_length": 64}
    return Params.model_validate({"model_name": str(folder), **values, **changes})


@pytest.mark.parametrize(
    ("special", "token", "why"),
    [
        ((*PLAIN, "<|MASK|>", *MARKERS), "<|MASK|>", "a mask by its name"),
        ((*PLAIN, *RESERVED, *MARKERS), RESERVED[0], "a reserved token"),
        ((*PLAIN, *MARKERS), "<reponame>", "a rare marker of code"),
        (PLAIN, "<|mask|>", "added behind its 279 tokens"),
        ((*QWEN3, "<|repo_name|>"), "<|MASK|>", "added behind its 282 tokens"),
    ],
)
def test_the_tokenizer_alone_chooses_its_mask(
    special: Sequence[str], token: str, why: str, tmp_path: Path
) -> None:
    causal_tokenizer(special).save_pretrained(tmp_path / "base")
    lines: list[str] = []

    def load(folder: Path) -> tuple[str, int]:
        found = load_tokenizer(str(folder), family=FAMILIES["llama"], log=lines.append)
        found.save_pretrained(tmp_path / "saved")
        return str(found.mask_token), found.convert_tokens_to_ids(token)

    first = load(tmp_path / "base")
    assert first[0] == token
    assert first[1] == (special.index(token) if token in special else 276 + len(special))
    assert load(tmp_path / "base") == first, "the same folder gives the same token"
    assert lines == [lines[0]] * 2
    assert f"{token} (id {first[1]}), {why}, becomes it" in lines[0]
    assert load(tmp_path / "saved") == first
    assert len(lines) == 2, "a saved tokenizer says it itself"


def test_a_reserved_token_that_ends_texts_is_not_chosen() -> None:
    tokenizer = causal_tokenizer((*PLAIN, *RESERVED))
    tokenizer.pad_token = RESERVED[0]
    name_mask_token(tokenizer)
    assert tokenizer.mask_token == RESERVED[1]


def test_text_that_spells_the_mask_stays_text(tmp_path: Path) -> None:
    causal_tokenizer(PLAIN).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), family=FAMILIES["qwen2"])
    assert tokenizer("a<|mask|>b")["input_ids"].count(tokenizer.mask_token_id) == 1
    assert tokenizer.mask_token_id in tokenizer.all_special_ids


@pytest.mark.parametrize("role", ["eos", "pad", "bos"])
def test_a_mask_with_another_role_is_refused(role: str, tmp_path: Path) -> None:
    tokenizer = causal_tokenizer()
    tokenizer.pad_token = END
    tokenizer.mask_token = getattr(tokenizer, f"{role}_token")
    tokenizer.save_pretrained(tmp_path)
    problem = refusal(lambda: load_tokenizer(str(tmp_path), field="tokenizer_name"))
    assert problem.field == "tokenizer_name"
    assert f"which is its {role}_token_id" in problem.got


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mask_token_id": 2, "eos_token_id": [0, 2]}, "mask_token_id 2, also its eos_token_id[1]"),
        ({"mask_token_id": 1}, "mask_token_id 1, also its bos_token_id"),
        ({"mask_token_id": 999}, "mask_token_id 999, no row of the table"),
        ({"mask_token_id": -1}, "mask_token_id -1, no row of the table"),
    ],
)
def test_a_configurations_mask_without_sense_is_refused(
    changes: dict[str, object], says: str
) -> None:
    tokenizer = causal_tokenizer()
    name_mask_token(tokenizer)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = tiny_config("llama", vocab_size=len(tokenizer), **{**ids, **changes})
    problem = refusal(lambda: check_pair(config, tokenizer, 16))
    assert (problem.field, problem.got) == ("model_name", says)


@pytest.mark.parametrize(
    ("factor", "stays"), [(0.0, False), (0.4, False), (0.6, True), (1.9, True), (2.1, False)]
)
def test_a_row_of_unusual_norm_becomes_the_mean(factor: float, stays: bool) -> None:
    model = tiny_model("llama")
    table = model.get_input_embeddings().weight
    median = table.detach().norm(dim=-1).median()
    with torch.no_grad():
        table[4] *= factor * median / table[4].norm()
    before = table[4].clone()
    line = settle_row(model, 4)
    if stays:
        assert (line, torch.equal(table[4], before)) == ("", True)
        return
    assert "begins as the mean of all rows" in line
    assert table[4].norm().item() == pytest.approx(median.item(), rel=0.1)
    mean = before + table.sum(0) - table[4]  # of the table as it was, times its rows
    assert torch.cosine_similarity(table[4], mean, dim=0) > 0.9999


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_table_without_room_grows_to_a_multiple_of_64(tied: bool, tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path, special=PLAIN, tie_word_embeddings=tied)
    tokenizer = load_tokenizer(str(base), family=FAMILIES["llama"])
    tables = []
    for _ in range(2):
        model = load_model(str(base))
        fit_to_tokenizer(model, tokenizer)
        assert model.config.vocab_size == 320
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = layer.weight.detach()
            assert weight.shape[0] == 320
            mean = weight[:279].mean(0).expand(41, -1)
            torch.testing.assert_close(weight[279:], mean, rtol=1e-6, atol=1e-6)
        tables.append(model.get_input_embeddings().weight)
    assert torch.equal(*tables), "an adapter is merged into the rows that it was trained on"


@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "qlora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("special", [(*PLAIN, *MARKERS), PLAIN], ids=["marker", "new row"])
def test_an_adapter_carries_the_masks_row(
    special: Sequence[str], tied: bool, four_bit: bool, tmp_path: Path
) -> None:
    base = write_causal_lm(tmp_path / "base", special=special, tie_word_embeddings=tied)
    tokenizer = load_tokenizer(str(base), family=FAMILIES["llama"])
    mask = tokenizer.mask_token_id
    live = make_model(parameters(base, load_in_4bit=four_bit), tokenizer, torch.float32)
    trained = {name for name, weight in live.named_parameters() if weight.requires_grad}
    (rows,) = {name for name in trained if "lora" not in name}
    assert "embed_tokens" in rows, "the head trains no mask: it is never an output"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in live.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    plain = live.get_base_model()
    row = plain.get_input_embeddings()(torch.tensor([mask])).detach()[0]
    ids = torch.cat((IDS, torch.tensor([[mask]])), dim=1)
    wanted = logits_of(live, ids)
    write_model(tmp_path / "adapter", live, tokenizer, ModelFacts(method="llada"))
    merged = merged_model(
        str(base),
        tmp_path / "adapter",
        four_bit=four_bit,
        dtype=torch.float32,
        tokenizer=tokenizer,
    )
    assert merged.config.mask_token_id == mask
    torch.testing.assert_close(merged.get_input_embeddings().weight[mask], row)
    said = torch.arange(wanted.shape[-1]) != mask
    assert (logits_of(merged, ids) - wanted)[..., said].abs().max() < 1e-4


def test_a_causal_run_leaves_the_masks_row_alone(tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path)
    tokenizer = load_tokenizer(str(base), family=FAMILIES["llama"])
    live = make_model(parameters(base, training_method="causal"), tokenizer, torch.float32)
    trained = {name for name, weight in live.named_parameters() if weight.requires_grad}
    assert all("lora" in name for name in trained)
    assert getattr(live.get_base_model().config, "mask_token_id", None) is None


def test_a_row_that_was_a_mask_before_stays_as_it_is(tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path / "base")
    tokenizer = load_tokenizer(str(base), family=FAMILIES["llama"])
    lines: list[str] = []
    first = make_model(parameters(base, lora=False), tokenizer, torch.float32, log=lines.append)
    with torch.no_grad():
        first.get_input_embeddings().weight[tokenizer.mask_token_id] *= 5
    write_model(tmp_path / "fused", first, tokenizer, ModelFacts(method="llada"))
    again = make_model(
        parameters(tmp_path / "fused", lora=False), tokenizer, torch.float32, log=lines.append
    )
    tables = (model.get_input_embeddings().weight for model in (first, again))
    assert torch.equal(*tables)
    assert lines == []


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_transformers_computes_a_converted_model(attention: str, tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path / "base")
    tokenizer = load_tokenizer(str(base), family=FAMILIES["llama"])
    model = make_model(parameters(base, lora=False), tokenizer, torch.float32)
    write_model(tmp_path / "fused", model, tokenizer, ModelFacts(method="llada"))
    fields = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForCausalLM"]
    assert (fields["is_causal"], fields["mask_token_id"]) == (False, tokenizer.mask_token_id)
    assert not list((tmp_path / "fused").glob("*.py"))
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fused", attn_implementation=attention
    ).eval()
    with torch.no_grad():
        got = plain(input_ids=IDS).logits
    torch.testing.assert_close(got, logits_of(model, IDS), rtol=1e-5, atol=1e-5)
    before = logits_of(load_model(str(base)), IDS)
    assert (got[:, :-1] - before[:, 1:]).abs().max() > 0.1, "the base looks back alone"
