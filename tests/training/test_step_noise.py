"""Noise of a step: Dream's weights, complementary pairs, counts, time band, dropped prompts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import (
    CLS,
    MASK,
    PAD,
    SEP,
    in_order,
    noised,
    pair,
    pairs,
    random_documents,
    rules,
    slots,
    tiny_model,
)

from plugin.data.documents import Builder, Documents
from plugin.data.steps import Slot
from plugin.models.diffusion import DiffusionModel
from plugin.objectives.dream import Cart, Scheduler, Uniform, by_context
from plugin.objectives.masked import Corruption, by_time
from plugin.objectives.noise import EPSILON, mask_probability, time_at
from plugin.training.step import Step, build_step

DOCUMENTS = random_documents(30)
UNIFORM = math.log(40)  # nats of a masked token under a model of zero weights


def drawn(step: Step) -> list[tuple[int, Corruption]]:
    return [
        each
        for micro_batch in step.micro_batches
        for each in zip(micro_batch.documents, micro_batch.corruptions, strict=True)
    ]


def forced(mask: str) -> Documents:
    """Return a document with the supervised tokens of `mask`, all masked at the highest time."""
    builder, supervised = Builder(), np.array([bit == "1" for bit in mask])
    builder.add(np.arange(10, 10 + supervised.size, dtype=np.int32), supervised, 2, "r")
    return builder.build()


ALL = {"t_min": 1 - 1e-12, "mask_count": "exact"}


@pytest.mark.parametrize(
    ("p", "weights"), [(0.3, [0.364515, 0.33495, 0.34845, 0.3612255]), (1.0, [0.5, 0, 0.5, 1.0])]
)
def test_cart_weights_of_the_oracle_reach_the_batch(p: float, weights: list[float]) -> None:
    documents = forced("00111010")
    step = build_step(
        in_order(documents),
        documents,
        rules(weight=by_context(Cart(p), "linear"), norm="masked", **ALL),
        batch_size=1,
    )
    (micro_batch,) = step.micro_batches
    assert micro_batch.batch.masked.tolist() == [2, 3, 4, 6]
    assert micro_batch.batch.weight.tolist() == pytest.approx(weights, rel=1e-6)
    assert step.count == 4


def test_cart_sees_no_neighbour_of_the_batch() -> None:
    """A document has equal weights between others and first in its batch."""
    how = rules(weight=by_context(Cart(0.3), "linear"), **ALL)
    builder = Builder()
    for mask in ("0111", "00111010", "0000011"):
        one = forced(mask)[0]
        builder.add(one.ids, one.supervised, one.prompt, "r")
    documents = builder.build()
    (micro_batch,) = build_step(in_order(documents), documents, how, batch_size=3).micro_batches
    place = micro_batch.documents.index(1)
    of_it = micro_batch.batch.document[micro_batch.batch.masked] == place
    assert micro_batch.batch.weight[of_it].tolist() == pytest.approx(
        [0.364515, 0.33495, 0.34845, 0.3612255], rel=1e-6
    )


def test_cart_context_holds_prompt_and_visible_end_tokens() -> None:
    # CLS 9 | 8 8 SEP, filled to 8 with SEP; only the first answer token is masked: context at
    # distances 1 2 and 1 2 3 4 5.
    ids, _, _ = pair(2, 3)
    mask = np.zeros(8, bool)
    mask[2] = True
    filled = np.concatenate([ids, [SEP] * 3]).astype(np.int32)
    one = noised(
        filled, mask, 1 - 1e-12, mask_count="exact", weight=by_context(Cart(0.5), "linear")
    )
    assert one.masked.tolist() == [2]
    left, right = 1 + 1 / 2, 1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 / 16
    assert one.weight[0] == pytest.approx(0.25 * (left + right), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "price"),
    [
        (Cart(0.3), (0.364515 + 0.33495 + 0.34845 + 0.3612255) / 4),
        (Cart(1.0), 0.5),
        (Uniform(), 1.0),
        (Scheduler(), 1.0),  # w(1) = 1
    ],
)
def test_dream_uniform_logits_cost_mean_weight_times_ln_v(kind: Any, price: float) -> None:
    documents = forced("00111010")
    step = build_step(
        in_order(documents),
        documents,
        rules(weight=by_context(kind, "linear"), norm="masked", **ALL),
        batch_size=1,
    )
    model = tiny_model("Dream")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    loss = (
        DiffusionModel(model, PAD)(step.micro_batches[0].batch).weighted.sum().item() / step.count
    )
    assert loss == pytest.approx(price * UNIFORM, rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_scheduler_is_the_weight_by_time_and_uniform_is_one(schedule: str) -> None:
    chosen = slots(16, 30)
    by_name = {}
    for name, weigh in (
        ("scheduler", by_context(Scheduler(), schedule)),
        ("uniform", by_context(Uniform(), schedule)),
    ):
        by_name[name] = drawn(
            build_step(chosen, DOCUMENTS, rules(schedule=schedule, weight=weigh), batch_size=16)
        )
    timed = drawn(
        build_step(
            chosen, DOCUMENTS, rules(schedule=schedule, weight=by_time(schedule)), batch_size=16
        )
    )
    seen = 0
    for (_, scheduled), (_, uniform), (_, plain) in zip(
        by_name["scheduler"], by_name["uniform"], timed, strict=True
    ):
        t = scheduled.levels.mean_t
        weight = 1 / t if schedule == "linear" else math.pi / 2 * math.tan(math.pi / 2 * (1 - t))
        assert scheduled.weight.tolist() == pytest.approx(
            [weight] * scheduled.masked.size, rel=1e-6
        )
        assert uniform.weight.tolist() == [1] * uniform.masked.size
        assert plain.weight.tolist() == scheduled.weight.tolist()
        seen += scheduled.masked.size
    assert seen > 20


@pytest.mark.parametrize("mask_count", ["bernoulli", "exact"])
def test_complementary_masks_are_disjoint_and_cover_all(mask_count: str) -> None:
    how = rules(complementary=True, mask_count=mask_count)
    step = build_step(slots(30, 30), DOCUMENTS, how, batch_size=7)
    masks: dict[int, list[Corruption]] = {}
    for index, one in drawn(step):
        masks.setdefault(index, []).append(one)
    assert len(masks) == 30
    for index, copies in masks.items():
        both = sorted(place for one in copies for place in one.masked.tolist())
        assert both == np.flatnonzero(DOCUMENTS[index].supervised).tolist()
    assert (
        sum(
            all(one.masked.size for one in copies) and len(copies) == 2 for copies in masks.values()
        )
        > 10
    )
    alone = build_step(slots(30, 30), DOCUMENTS, rules(mask_count=mask_count), batch_size=7)
    if mask_count == "bernoulli":
        assert (step.count, step.tokens, step.supervised) == (
            2 * alone.count,
            2 * alone.tokens,
            2 * alone.supervised,
        )
        first_masks = {index: one.masked.tolist() for index, one in drawn(alone)}
        assert all(
            first_masks[index] in [one.masked.tolist() for one in copies]
            for index, copies in masks.items()
        )


# As for one copy of each document: E[w(t) p(t)] over t in [eps, 1).
EXPECTED = {"linear": 1.0, "cosine": (1 - math.sin(math.pi * EPSILON / 2)) / (1 - EPSILON)}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("mask_count", ["bernoulli", "exact"])
def test_complementary_pairs_keep_the_expected_loss(schedule: str, mask_count: str) -> None:
    documents = random_documents(6000, seed=3, longest=30)
    how = rules(complementary=True, schedule=schedule, mask_count=mask_count)
    step = build_step(in_order(documents), documents, how, batch_size=6000)
    losses, counts = np.zeros(6000), np.zeros(6000)
    for index, one in drawn(step):
        losses[index] += one.weight.sum(dtype=np.float64)
        counts[index] += one.count
    assert counts.sum() == step.count
    residual = losses - EXPECTED[schedule] * counts
    error = math.sqrt((residual**2).sum()) / step.count
    assert error < 0.05, "or the next line says nothing"
    assert residual.sum() / step.count == pytest.approx(0, abs=4 * error + 1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_time_at_inverts_the_mask_probability(schedule: str) -> None:
    for t in (0.002, 0.1, 0.5, 0.77, 1.0):
        assert time_at(schedule, mask_probability(schedule, t)) == pytest.approx(t, rel=1e-9)
    assert time_at(schedule, 0.0) == EPSILON


def test_exact_counts_of_every_document() -> None:
    step = build_step(
        slots(30, 30), DOCUMENTS, rules(mask_count="exact", t_min=0.4, t_max=0.401), batch_size=30
    )
    counts = {index: one.masked.size for index, one in drawn(step)}
    assert len(set(counts.values())) > 2
    for index, count in counts.items():
        supervised = int(DOCUMENTS[index].supervised.sum())
        assert count == math.ceil(0.4 * supervised + 1e-6)
        weight = next(one.weight[0] for place, one in drawn(step) if place == index)
        assert weight == pytest.approx(supervised / count, rel=1e-3), (
            "w(t) p L / l = L / l under linear noise"
        )


@pytest.mark.parametrize("t_sampling", ["iid", "stratified"])
def test_times_stay_in_their_band(t_sampling: str) -> None:
    step = build_step(
        slots(30, 30), DOCUMENTS, rules(t_min=0.3, t_max=0.8, t_sampling=t_sampling), batch_size=30
    )
    times = [one.levels.mean_t for _, one in drawn(step)]
    assert 0.3 <= min(times) < 0.4
    assert 0.7 < max(times) < 0.8


def test_dropped_prompt_is_hidden_and_not_learned() -> None:
    documents = pairs((4, 6))
    dropped = 0
    for pass_ in range(1000):
        step = build_step(
            in_order(documents, pass_), documents, rules(prompt_drop=0.1), batch_size=1
        )
        plain = build_step(in_order(documents, pass_), documents, rules(), batch_size=1)
        ((_, one),), ((_, kept),) = drawn(step), drawn(plain)
        hidden = one.noisy[:4].tolist() == [MASK] * 4
        assert hidden or one.noisy[:4].tolist() == [CLS, 9, 9, 9]
        dropped += hidden
        assert one.masked.tolist() == kept.masked.tolist(), "the answer's noise is the same"
        assert one.noisy[4:].tolist() == kept.noisy[4:].tolist()
        assert (step.count, step.masked) == (plain.count, plain.masked)
    assert dropped / 1000 == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_prompt_drop_share_of_none_or_all(share: float) -> None:
    step = build_step(slots(30, 30), DOCUMENTS, rules(prompt_drop=share), batch_size=30)
    hidden = {
        bool((one.noisy[: DOCUMENTS[index].prompt] == MASK).all()) for index, one in drawn(step)
    }
    assert hidden == {share == 1.0}


def test_dropped_prompt_is_not_learned_with_prompt_loss_on() -> None:
    builder = Builder()
    ids, _, prompt = pair(4, 6)
    builder.add(ids, np.arange(ids.size) > 0, prompt, "r")  # mask_prompt_loss off
    documents = builder.build()
    ((_, one),) = drawn(
        build_step(
            in_order(documents), documents, rules(prompt_drop=1.0, t_min=0.999), batch_size=1
        )
    )
    assert one.noisy.tolist() == [MASK] * 10
    assert one.masked.tolist() == list(range(4, 10))


def test_prompt_drop_depends_on_seed_document_and_pass() -> None:
    def dropped(pass_: int, batch_size: int = 30, **how: Any) -> set[int]:
        chosen = [Slot(pass_, place, place) for place in range(30)]
        step = build_step(chosen, DOCUMENTS, rules(prompt_drop=0.5, **how), batch_size=batch_size)
        return {index for index, one in drawn(step) if one.noisy[0] == MASK}

    assert 5 < len(dropped(0)) < 25
    assert dropped(0) == dropped(0, batch_size=4)
    assert dropped(0) != dropped(1)
    assert dropped(0) != dropped(0, seed=8)


def test_cart_context_lacks_a_dropped_prompt() -> None:
    documents = pairs((4, 1))
    how = rules(prompt_drop=1.0, weight=by_context(Cart(0.3), "linear"), **ALL)
    ((_, one),) = drawn(build_step(in_order(documents), documents, how, batch_size=1))
    assert one.weight.tolist() == [0]
