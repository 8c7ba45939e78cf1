"""Packed documents: equal to each document alone, and kept apart, for every family and backend.

Leaks are silent, so isolation is tested twice: editing a document leaves the others' sums equal to
the last bit, and the gradient of a document's loss with respect to another's embeddings is 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import (
    FAMILIES,
    PAD,
    alone_in,
    assert_same_vector,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_config,
    tiny_model,
)
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_sliding_window_mask

from plugin.base.errors import JobError
from plugin.batch import Batch
from plugin.config.families import FAMILIES as KNOWN
from plugin.data.packing import PADDED, Layout
from plugin.models import attention
from plugin.models.attention import Segments
from plugin.models.backbones import BACKBONES, is_packable
from plugin.models.diffusion import DiffusionModel, Predictor
from plugin.models.load import load_model
from plugin.models.lora import LoraSettings, add_adapter
from plugin.training.step import build_step

DOCUMENTS = random_documents(12, longest=26)
BACKENDS = ("loop", "dense")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
quiet_peft = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def packed_batch(count: int = 12) -> Batch:
    (micro_batch,) = build_step(
        slots(count, 12), DOCUMENTS, rules(), batch_size=count, layout=Layout(True)
    ).micro_batches
    assert micro_batch.batch.documents == count
    return micro_batch.batch


def edited(batch: Batch, document: int) -> Batch:
    """Return the batch with every visible token of a document changed."""
    there = batch.document == document
    there[batch.masked] = False
    return replace(batch, ids=torch.where(there, 5 + (batch.ids + 7) % 30, batch.ids))


def test_packing_batch_excites_every_path() -> None:
    batch = packed_batch()
    lengths = batch.cu_seqlens.diff().tolist()
    assert len(set(lengths)) < len(lengths), "some documents of one length, computed together"
    assert len(set(lengths)) > 4
    assert batch.longest > 4 * 4, (
        "beyond every window of 2 tokens to each side, even after three layers"
    )


@every_family
@every_backend
def test_packed_sums_equal_those_of_documents_alone(family: str, backend: str) -> None:
    model, batch = tiny_model(family), packed_batch()
    wanted = torch.stack(alone_in(model, batch))
    wanted.sum().backward()
    reference = gradient(model)
    model.zero_grad()
    got = DiffusionModel(model, PAD, backend)(batch)
    got.weighted.sum().backward()
    assert wanted.max() > 10
    torch.testing.assert_close(got.weighted, wanted, rtol=1e-5, atol=1e-5)
    assert_same_vector(gradient(model), reference, 1e-5)


@every_family
@every_backend
@pytest.mark.parametrize("document", [0, 5, 11])
def test_packed_document_edit_leaves_others_unchanged(
    family: str, backend: str, document: int
) -> None:
    module, batch = DiffusionModel(tiny_model(family), PAD, backend), packed_batch()
    before, after = module(batch), module(edited(batch, document))
    others = torch.arange(12) != document
    assert torch.equal(before.weighted[others], after.weighted[others])
    assert torch.equal(before.nll[others], after.nll[others])
    assert batch.weight[batch.document[batch.masked] == document].numel(), (
        "the edited one has a loss to change"
    )
    assert before.weighted[document] != after.weighted[document]


@every_family
@every_backend
def test_packed_gradient_never_reaches_other_documents(family: str, backend: str) -> None:
    model, batch = tiny_model(family), packed_batch()
    embedded: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    DiffusionModel(model, PAD, backend)(batch).weighted[5].backward()
    gradients = embedded[0].grad[0]
    assert (gradients[batch.document != 5] == 0).all()
    assert (gradients[batch.document == 5].abs().sum(-1) > 0).all()


@every_backend
def test_modernbert_window_stays_within_the_document(backend: str) -> None:
    """A token's state depends on exactly the 2 neighbours to each side within its document."""
    model = tiny_model(
        "modernbert", num_hidden_layers=2, layer_types=["sliding_attention", "sliding_attention"]
    )
    model.model.layers = model.model.layers[:1]
    model.set_attn_implementation(attention.NAME)
    batch = packed_batch(3)
    embedded = model.get_input_embeddings()(batch.ids[None]).detach().requires_grad_()
    model.get_input_embeddings().register_forward_hook(lambda *call: embedded)
    states = BACKBONES["modernbert"].encode_flat(
        model, batch.ids[None], batch.position[None], Segments.of(batch, backend)
    )[0]
    for token in (
        0,
        7,
        int(batch.cu_seqlens[1]) - 1,
        int(batch.cu_seqlens[1]),
        int(batch.cu_seqlens[2]) + 1,
    ):
        (reached,) = torch.autograd.grad(states[token].square().sum(), embedded, retain_graph=True)
        near = (torch.arange(batch.ids.shape[0]) - token).abs() <= 2
        seen = reached[0].abs().sum(-1) > 0
        assert seen.tolist() == (near & (batch.document == batch.document[token])).tolist()


def test_packed_window_equals_that_of_transformers() -> None:
    config = tiny_config("modernbert")
    config._attn_implementation = "sdpa"
    drawn = create_bidirectional_sliding_window_mask(config, torch.zeros(1, 9, 16), None)
    batch = packed_batch(1)
    segments = Segments.of(batch, "loop")
    assert torch.equal(segments.near(9, config.sliding_window), drawn[0, 0])
    assert segments.near(3, 2) is None, "all pairs are near"
    assert segments.near(9, None) is None


@every_family
def test_attention_without_segments_is_sdpa(family: str) -> None:
    """Sampling uses the trained model with padded rows: logits as before packing was switched on."""
    model = tiny_model(family)
    ids = torch.full((2, 14), PAD)
    ids[0] = torch.arange(6, 20)
    ids[1, :9] = torch.arange(9, 18)
    places = torch.tensor([[0, 13], [1, 3], [1, 8]])
    before = Predictor(model)(ids, ids != PAD, places), model(input_ids=ids[:1]).logits
    DiffusionModel(model, PAD, "loop")
    after = Predictor(model)(ids, ids != PAD, places), model(input_ids=ids[:1]).logits
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


@every_family
def test_saved_model_has_no_trace_of_packing(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    DiffusionModel(model, PAD, "loop")
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert load_model(str(tmp_path)).config._attn_implementation == "sdpa"


@every_family
def test_recomputed_layers_see_the_same_documents(family: str) -> None:
    """Another batch runs between forward and backward, so that shared state would be wrong."""
    found = []
    for recompute in (False, True):
        model = tiny_model(family).train()
        if recompute:
            model.activation_checkpointing_enable()
        module = DiffusionModel(model, PAD, "loop")
        loss = module(packed_batch()).weighted.sum()
        module(packed_batch(2))
        loss.backward()
        found.append(gradient(model))
    assert_same_vector(found[1], found[0], 1e-6)


@pytest.mark.slow
@quiet_peft
@every_family
@pytest.mark.parametrize("lora", [False, True])
def test_packing_on_and_off_give_one_loss_trace(family: str, lora: bool) -> None:
    """Six AdamW steps of 8 documents in micro-batches that packing splits differently."""
    traces = []
    for layout, backend in (
        (PADDED, None),
        (Layout(True), "loop"),
        (Layout(True, 48), "loop"),
        (Layout(True), "dense"),
    ):
        model = tiny_model(family)
        if lora:
            torch.manual_seed(0)
            model = add_adapter(model, KNOWN[family], LoraSettings(4, 8, 0.0, "auto"), [])
        module = DiffusionModel(model, PAD, backend)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        traces.append([])
        for number in range(6):
            step = build_step(
                slots(8, 12, step=number), DOCUMENTS, rules(), batch_size=3, layout=layout
            )
            total = 0.0
            for micro_batch in step.micro_batches:
                loss = module(micro_batch.batch).weighted.sum() / step.count
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            traces[-1].append(total)
    assert abs(traces[0][0] - traces[0][-1]) > 0.1, "it learns"
    for trace in traces[1:]:
        assert trace == pytest.approx(traces[0], rel=1e-5)


@quiet_peft
@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_packing_on_4_bit_base_gives_the_same_losses(family: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1}
    tiny_model(family, **wide).save_pretrained(tmp_path)
    found = []
    for backend in (None, "loop"):
        base = load_model(str(tmp_path), four_bit=True)
        torch.manual_seed(0)
        model = add_adapter(base, KNOWN[family], LoraSettings(4, 8, 0.0, "auto"), [])
        module = DiffusionModel(model, PAD, backend).train()
        loss = module(packed_batch()).weighted.sum()
        loss.backward()
        found.append(
            (
                loss.item(),
                torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
            )
        )
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert_same_vector(found[1][1], found[0][1], 1e-5)


def test_unpackable_family_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "bert", replace(BACKBONES["bert"], encode_flat=None))
    with pytest.raises(JobError, match=r"packing.*roberta.*bert"):
        DiffusionModel(tiny_model("bert"), PAD, "loop")
    assert not is_packable("bert")
    assert not is_packable("gpt2")


def test_packed_models_share_no_state() -> None:
    """Two models packed in turns: each call carries its own documents."""
    first, second = (
        DiffusionModel(tiny_model(family), PAD, "loop") for family in ("modernbert", "bert")
    )
    wanted = first(packed_batch()).weighted
    second(packed_batch(3))
    assert torch.equal(first(packed_batch()).weighted, wanted)


def test_packing_builds_no_quadratic_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer of any family receives a mask, and transformers builds none over the flat row."""
    shapes: list[torch.Size] = []
    plain = attention.sdpa_mask

    def spy(**asked: Any) -> Tensor | None:
        drawn = plain(**asked)
        shapes.extend([] if drawn is None else [drawn.shape])
        return drawn

    monkeypatch.setitem(attention.AttentionMaskInterface._global_mapping, attention.NAME, spy)
    for family in FAMILIES:
        model: PreTrainedModel = tiny_model(family)
        DiffusionModel(model, PAD, "loop")(packed_batch())
    assert shapes == []
