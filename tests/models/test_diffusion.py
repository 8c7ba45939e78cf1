"""The trained module against the model's own forward on each document alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import (
    CLS,
    FAMILIES,
    MASK,
    PAD,
    SEP,
    adapted,
    alone,
    assert_same_vector,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_config,
    tiny_model,
)
from transformers import AutoModelForMaskedLM

from plugin.config.families import DECODERS
from plugin.config.families import FAMILIES as KNOWN
from plugin.data.collate import lay_out
from plugin.models.backbones import BACKBONES, forbidden_output, output_projection
from plugin.models.diffusion import DiffusionModel, Predictor
from plugin.models.load import load_model
from plugin.training.step import MicroBatch, build_step

DOCUMENTS = random_documents(12)


def one_micro_batch(size: int = 12) -> MicroBatch:
    (micro_batch,) = build_step(slots(size, 12), DOCUMENTS, rules(), batch_size=size).micro_batches
    return micro_batch


def test_every_supported_family_has_a_backbone() -> None:
    assert set(BACKBONES) == set(FAMILIES) == set(KNOWN)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_equal_those_of_each_document_alone(family: str, kernel: str, lora: bool) -> None:
    model, micro_batch = tiny_model(family), one_micro_batch()
    model.set_attn_implementation(kernel)
    model = adapted(model, family) if lora else model
    assert len({one.noisy.size for one in micro_batch.corruptions}) > 5, (
        "lengths differ, or nothing is padded"
    )
    assert micro_batch.batch.longest > 3 * 4, "longer than ModernBERT's window of 4"
    wanted = torch.stack(alone(model, DOCUMENTS, micro_batch))
    got = DiffusionModel(model, PAD)(micro_batch.batch)
    assert wanted.max() > 10
    torch.testing.assert_close(got.weighted, wanted, rtol=1e-5, atol=1e-5)
    unweighted = [
        loss / one.weight[0] if one.weight.size else loss
        for loss, one in zip(wanted, micro_batch.corruptions, strict=True)
    ]
    torch.testing.assert_close(got.nll, torch.stack(unweighted).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_each_document_alone(family: str, lora: bool) -> None:
    model, micro_batch = tiny_model(family), one_micro_batch()
    model = adapted(model, family) if lora else model
    torch.stack(alone(model, DOCUMENTS, micro_batch)).sum().backward()
    wanted = gradient(model)
    model.zero_grad()
    DiffusionModel(model, PAD)(micro_batch.batch).weighted.sum().backward()
    assert_same_vector(gradient(model), wanted, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_of_equal_length_need_no_mask(family: str) -> None:
    model, (micro_batch, *_) = (
        tiny_model(family),
        build_step(slots(12, 12), DOCUMENTS, rules(), batch_size=1).micro_batches,
    )
    assert micro_batch.batch.documents == 1
    (wanted,) = alone(model, DOCUMENTS, micro_batch)
    torch.testing.assert_close(
        DiffusionModel(model, PAD)(micro_batch.batch).weighted[0], wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_has_no_effect(family: str) -> None:
    """A much longer neighbour makes three quarters of a row padding, of any token."""
    model, micro_batch = tiny_model(family), one_micro_batch(1)
    (short,) = micro_batch.corruptions
    (index,) = micro_batch.documents
    long = replace(
        short, noisy=np.full(60, 9, np.int32), masked=np.arange(0), weight=np.zeros(0, np.float32)
    )
    batch = lay_out([DOCUMENTS[index].ids, long.noisy], [short, long])
    for pad_id in (
        (PAD, 11) if family != "roberta" else (PAD,)
    ):  # RoBERTa derives positions from the pad token
        got = DiffusionModel(model, pad_id)(batch).weighted
        torch.testing.assert_close(
            got[0], DiffusionModel(model, PAD)(micro_batch.batch).weighted[0], rtol=1e-5, atol=1e-5
        )
        assert got[1] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_document_sums_ignore_a_neighbours_text(family: str) -> None:
    module, micro_batch = DiffusionModel(tiny_model(family), PAD), one_micro_batch(6)
    before = module(micro_batch.batch)
    first = micro_batch.batch.document == 0
    edited = torch.where(
        first & (micro_batch.batch.ids != MASK),
        (micro_batch.batch.ids + 7) % 30 + 5,
        micro_batch.batch.ids,
    )
    target = torch.where(
        micro_batch.batch.document[micro_batch.batch.masked] == 0,
        (micro_batch.batch.target + 3) % 30 + 5,
        micro_batch.batch.target,
    )
    after = module(replace(micro_batch.batch, ids=edited, target=target))
    assert micro_batch.batch.masked.numel() > 6
    assert before.weighted[0] != after.weighted[0]
    assert torch.equal(before.weighted[1:], after.weighted[1:])
    assert torch.equal(before.nll[1:], after.nll[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_document_gradient_never_reaches_neighbours(family: str) -> None:
    model, micro_batch = tiny_model(family), one_micro_batch(6)
    embedded: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    sums = DiffusionModel(model, PAD)(micro_batch.batch)
    lengths = micro_batch.batch.cu_seqlens.diff().tolist()
    assert len(set(lengths)) > 3
    for row, length in enumerate(lengths):
        embedded[0].grad = None
        sums.weighted[row].backward(retain_graph=True)
        reached = embedded[0].grad.abs().sum(-1) > 0
        wanted = torch.zeros_like(reached)
        wanted[row, :length] = sums.weighted[row] > 0
        # Dream's last state predicts nothing, but its token is still seen; ModernBERT's window of 4
        # may not reach all tokens.
        assert (reached & ~wanted).sum() == 0
        assert sums.weighted[row] == 0 or reached[row].sum() >= min(4, length)


@pytest.mark.parametrize("family", FAMILIES)
def test_idle_rank_has_no_loss_and_zero_gradients(family: str) -> None:
    model = tiny_model(family)
    step = build_step(slots(1, 12), DOCUMENTS, rules(), batch_size=4, rank=1, ranks=2)
    (idle,) = step.micro_batches
    assert step.masked > 0, "the other rank has something to do"
    assert idle.documents == ()
    sums = DiffusionModel(model, PAD)(idle.batch)
    sums.weighted.sum().backward()
    assert sums.weighted.tolist() == [0.0]
    got = gradient(model)
    assert got.isfinite().all()
    assert (got == 0).all()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == [], "a parameter without a gradient would hang the exchange of gradients"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_loaded_model_has_no_dropout_in_train_mode(family: str, tmp_path: object) -> None:
    config = tiny_config(family)
    assert config.hidden_dropout_prob > 0
    AutoModelForMaskedLM.from_config(config).save_pretrained(str(tmp_path))
    module = DiffusionModel(load_model(str(tmp_path)), PAD)
    micro_batch = one_micro_batch()
    training, still = (
        module.train()(micro_batch.batch).weighted,
        module.eval()(micro_batch.batch).weighted,
    )
    assert torch.equal(training, still)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictor_gives_model_logits_at_given_places(family: str) -> None:
    model = tiny_model(family)
    rows = [[CLS, 9, 8, SEP, MASK, MASK, 7, 6, 5, 12], [CLS, 9, SEP, MASK]]
    ids = torch.full((2, 10), PAD)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    places = torch.tensor([[1, 3], [0, 5], [0, 1]])
    got = Predictor(model)(ids, ids != PAD, places)
    assert not got.requires_grad
    for logits, (row, column) in zip(got, places.tolist(), strict=True):
        wanted = model(input_ids=torch.tensor([rows[row]])).logits[0, column]
        torch.testing.assert_close(logits, wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_never_predicts_its_mask_token(family: str) -> None:
    model, micro_batch = tiny_model(family, mask_token_id=MASK), one_micro_batch()
    head = output_projection(model)
    with torch.no_grad():
        head.weight[MASK] *= 8  # likely in half of the places, so that it counts
    module = DiffusionModel(model, PAD).train()
    got = module(micro_batch.batch)
    logits = head(module.masked_states(micro_batch.batch)).detach()
    if family in DECODERS:
        logits[:, MASK] = -torch.inf
    assert forbidden_output(model.config) == (MASK if family in DECODERS else None)
    nll = torch.nn.functional.cross_entropy(logits, micro_batch.batch.target, reduction="none")
    assert got.nll.sum().item() == pytest.approx(nll.sum().item(), rel=1e-5)
    (of_mask,) = torch.autograd.grad(got.weighted.sum(), head.weight)
    assert bool(of_mask[MASK].any()) == (family not in DECODERS)


def test_a_causal_model_may_predict_any_token() -> None:
    config = tiny_config("llama", mask_token_id=MASK, is_causal=True)
    assert forbidden_output(config) is None


def test_certainty_is_part_of_training_alone() -> None:
    model, micro_batch = tiny_model("llama"), one_micro_batch()
    plain = DiffusionModel(model, PAD)
    sure = DiffusionModel(model, PAD, certainty=2.0)
    assert plain.eval()(micro_batch.batch).weighted.equal(sure.eval()(micro_batch.batch).weighted)
    batch = micro_batch.batch
    right = output_projection(model)(plain.masked_states(batch)).argmax(-1)
    batch = replace(batch, target=right.where(torch.arange(right.numel()) % 2 == 0, batch.target))
    before, after = plain.train()(batch), sure.train()(batch)
    assert (after.weighted > before.weighted).any()
    assert after.nll.equal(before.nll)
    halved = replace(batch, unit=torch.full_like(batch.weight, 0.5))
    assert (sure(halved).weighted - before.weighted).tolist() == pytest.approx(
        ((after.weighted - before.weighted) / 2).tolist(), rel=1e-4, abs=1e-5
    )
