"""Splits of a step over micro-batches and ranks: same divisor, same loss, same gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import (
    MASK,
    PAD,
    SEP,
    assert_same_vector,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_model,
)

from plugin.data.documents import Builder, Documents
from plugin.data.steps import Slot
from plugin.models.diffusion import DiffusionModel
from plugin.training.step import Step, StepRules, build_step, step_items

DOCUMENTS = random_documents(30)


def ranks_of(
    how: StepRules,
    ranks: int,
    batch_size: int,
    chosen: list[Slot],
    documents: Documents = DOCUMENTS,
) -> list[Step]:
    return [
        build_step(chosen, documents, how, batch_size=batch_size, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]


def loss_and_gradient(parts: list[Step]) -> tuple[float, torch.Tensor]:
    """Return loss and gradient of the full step, divided once by its count, of a float64 model."""
    module = DiffusionModel(tiny_model("modernbert"), PAD).double()
    total = 0.0
    for part in parts:
        for micro_batch in part.micro_batches:
            loss = module(micro_batch.batch).weighted.sum() / part.count
            loss.backward()
            total += loss.item()
    return total, gradient(module)


@pytest.mark.parametrize("norm", ["token", "sequence", "masked", "batch"])
@pytest.mark.parametrize("eos_policy", ["single", "block", "batch"])
def test_step_any_split_has_the_same_loss_and_gradient(norm: str, eos_policy: str) -> None:
    how, chosen = rules(norm=norm, eos_policy=eos_policy), slots(4, 30)
    whole_loss, whole_gradient = loss_and_gradient(
        ranks_of(how, ranks=1, batch_size=4, chosen=chosen)
    )
    assert whole_loss > 1
    # accumulate 4, accumulate 2, 2 ranks x 2, 2 ranks x accumulate 2, 4 ranks, 3 ranks
    for ranks, batch_size in ((1, 1), (1, 2), (2, 2), (2, 1), (4, 1), (3, 4)):
        loss, got = loss_and_gradient(ranks_of(how, ranks, batch_size, chosen))
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        assert_same_vector(got, whole_gradient, 1e-6)


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 16), (1, 3), (2, 4), (3, 2), (5, 1)])
def test_step_figures_are_the_same_on_every_rank(ranks: int, batch_size: int) -> None:
    chosen = slots(16, 30)
    whole = build_step(chosen, DOCUMENTS, rules(), batch_size=16)
    parts = ranks_of(rules(), ranks, batch_size, chosen)
    for part in parts:
        assert (part.count, part.masked, part.tokens, part.supervised) == (
            whole.count,
            whole.masked,
            whole.tokens,
            whole.supervised,
        )
        assert all(micro_batch.batch.documents <= batch_size for micro_batch in part.micro_batches)
    held = [
        index
        for part in parts
        for micro_batch in part.micro_batches
        for index in micro_batch.documents
    ]
    assert sorted(held) == sorted(slot.index for slot in chosen)
    laid = [
        int(micro_batch.batch.ids.numel())
        for part in parts
        for micro_batch in part.micro_batches
        if micro_batch.documents
    ]
    assert sum(laid) == whole.tokens
    assert (
        sum(
            micro_batch.batch.masked.numel() for part in parts for micro_batch in part.micro_batches
        )
        == whole.masked
    )


def test_step_divisors_of_each_norm_worked_by_hand() -> None:
    builder = Builder()
    for answer in (1, 4, 2):
        ids = np.array([2, 9, 3, *[8] * (answer - 1), 3], np.int32)
        builder.add(ids, np.arange(ids.size) >= 3, 3, "r")
    documents, chosen = builder.build(), [Slot(0, place, place) for place in range(3)]
    counts = {
        norm: build_step(
            chosen,
            documents,
            rules(norm=norm, mask_count="exact", t_min=0.5, t_max=0.501),
            batch_size=3,
        ).count
        for norm in ("token", "sequence", "batch", "masked")
    }
    assert counts == {
        "token": 7,
        "sequence": 3,
        "batch": 3,
        "masked": 1 + 3 + 2,
    }  # ceil(.5... x 4) = 3, ceil(.5... x 2) = 2


def test_noise_depends_on_the_document_not_its_place() -> None:
    chosen = slots(8, 30)
    for part in (
        build_step(chosen, DOCUMENTS, rules(), batch_size=8),
        build_step(chosen[::-1], DOCUMENTS, rules(), batch_size=2),
    ):
        seen = {
            index: (one.levels.mean_t, one.masked.tolist())
            for micro_batch in part.micro_batches
            for index, one in zip(micro_batch.documents, micro_batch.corruptions, strict=True)
        }
        if part.micro_batches[0].batch.documents == 8:
            wanted = seen
    assert seen == wanted


def test_step_across_two_passes_draws_times_of_each() -> None:
    """A document in two passes of one step has the noises that it has alone in each pass."""
    both = [Slot(0, 29, 5), Slot(1, 0, 5)]
    together = build_step(both, DOCUMENTS, rules(), batch_size=1).micro_batches
    singles = [
        build_step([slot], DOCUMENTS, rules(), batch_size=1).micro_batches[0] for slot in both
    ]
    assert [micro_batch.corruptions[0].levels.mean_t for micro_batch in together] == [
        micro_batch.corruptions[0].levels.mean_t for micro_batch in singles
    ]
    assert together[0].corruptions[0].levels.mean_t != together[1].corruptions[0].levels.mean_t


def test_targets_are_true_tokens_inputs_are_masked() -> None:
    for micro_batch in build_step(slots(8, 30), DOCUMENTS, rules(), batch_size=3).micro_batches:
        true = np.concatenate([DOCUMENTS[index].ids for index in micro_batch.documents])
        assert (micro_batch.batch.ids[micro_batch.batch.masked] == MASK).all()
        assert micro_batch.batch.target.tolist() == true[micro_batch.batch.masked.numpy()].tolist()
        assert (micro_batch.batch.target != MASK).all()


@pytest.mark.parametrize(
    ("policy", "lengths"), [("single", [5, 9]), ("block", [11, 11]), ("batch", [9, 9])]
)
def test_end_tokens_are_filled_in_before_the_noise(policy: str, lengths: list[int]) -> None:
    builder = Builder()
    for prompt, answer in ((3, 2), (3, 6)):
        ids = np.array([*[9] * prompt, *[8] * (answer - 1), SEP], np.int32)
        builder.add(ids, np.arange(ids.size) >= prompt, prompt, "r")
    documents = builder.build()
    how = rules(eos_policy=policy, eos_block=8)
    filled = step_items([documents[0], documents[1]], [Slot(0, 0, 0), Slot(0, 1, 1)], how)
    assert [item.cut for item in filled] == [0, 0]
    assert [item.ids.size for item in filled] == lengths
    assert all(
        (item.ids[3 + answer - 1 :] == SEP).all()
        for item, answer in zip(filled, (2, 6), strict=True)
    )
    step = build_step([Slot(0, 0, 0), Slot(0, 1, 1)], documents, how, batch_size=2)
    assert sum(step.lengths) == sum(lengths)
    assert step.tokens == 14, "those of the data: fill is counted separately"
    assert step.fill == sum(lengths) - 14
    assert step.supervised == sum(lengths) - 6, "every filled end token is learned"


def test_uniform_logits_cost_ln_v_through_the_model() -> None:
    """The oracle goes through every layer: a model of zero weights, and exact mask counts."""
    model = tiny_model("bert")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    for norm in ("token", "sequence"):
        step = build_step(
            slots(30, 30), DOCUMENTS, rules(norm=norm, mask_count="exact"), batch_size=7
        )
        loss = (
            sum(
                DiffusionModel(model, PAD)(micro_batch.batch).weighted.sum().item()
                for micro_batch in step.micro_batches
            )
            / step.count
        )
        assert loss == pytest.approx(math.log(40), rel=1e-5)


def test_rank_without_documents_has_an_idle_micro_batch() -> None:
    parts = ranks_of(rules(), ranks=3, batch_size=2, chosen=slots(2, 30))
    idle = parts[2]
    assert len(idle.micro_batches) == 1
    assert idle.micro_batches[0].documents == ()
    assert idle.micro_batches[0].batch.masked.numel() == 0
    assert idle.count == parts[0].count > 0
    assert replace(idle, micro_batches=()) == replace(parts[0], micro_batches=())
