"""Steps of block diffusion: any split has the same rows, loss and gradient; its work is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import (
    PAD,
    SEP,
    assert_same_vector,
    cpu,
    gradient,
    in_order,
    pairs,
    random_documents,
    rules,
    slots,
    tiny_model,
)

from plugin.data.packing import Layout
from plugin.data.steps import Slot
from plugin.models.configuration import set_attention
from plugin.models.diffusion import DiffusionModel
from plugin.objectives.answers import Answers, EndFill
from plugin.objectives.block import Blocks
from plugin.run.facts import BlockFacts
from plugin.training.evaluate import evaluate
from plugin.training.step import Step, StepRules, build_step, build_streamed_step

DOCUMENTS = random_documents(30)
PACKED = Layout(packed=True)


def blocks_of(**how: Any) -> StepRules:
    known = {name: how.pop(name) for name in list(how) if name in Blocks.__dataclass_fields__}
    blocks = Blocks(**{"size": 4, "half_life": 0.1, **known})
    return replace(rules(**how), noising=blocks)


def module_of(size: int = 4) -> DiffusionModel:
    model = tiny_model("llama")
    set_attention(model.config, "block", BlockFacts(size=size))
    return DiffusionModel(model, PAD, "loop").double()


def ranks_of(how: StepRules, ranks: int, batch_size: int, chosen: list[Slot]) -> list[Step]:
    return [
        build_step(
            chosen, DOCUMENTS, how, batch_size=batch_size, layout=PACKED, rank=rank, ranks=ranks
        )
        for rank in range(ranks)
    ]


def loss_and_gradient(parts: list[Step]) -> tuple[float, torch.Tensor]:
    module, total = module_of(), 0.0
    for part in parts:
        for micro_batch in part.micro_batches:
            loss = module(micro_batch.batch).weighted.sum() / part.count
            loss.backward()
            total += loss.item()
    return total, gradient(module)


@pytest.mark.parametrize("norm", ["token", "sequence", "masked"])
@pytest.mark.parametrize(
    "how", [{}, {"views": 2}, {"half_life": 0.0}, {"causal": True, "ar_weight": 0.3}]
)
def test_any_split_has_the_same_loss_and_gradient(how: dict[str, Any], norm: str) -> None:
    made, chosen = blocks_of(norm=norm, **how), slots(4, 30)
    whole = ranks_of(made, ranks=1, batch_size=4, chosen=chosen)
    whole_loss, whole_gradient = loss_and_gradient(whole)
    assert whole_loss > 1
    for ranks, batch_size in ((1, 1), (2, 1), (3, 4), (5, 1)):  # a fifth rank has no document
        parts = ranks_of(made, ranks, batch_size, chosen)
        loss, got = loss_and_gradient(parts)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        assert_same_vector(got, whole_gradient, 1e-6)
        assert {(part.count, part.masked, part.lengths, part.rows) for part in parts} == {
            (whole[0].count, whole[0].masked, whole[0].lengths, whole[0].rows)
        }


def test_a_step_counts_data_tokens_and_the_rows_that_they_become() -> None:
    """Two documents of 600 + 200 tokens in blocks of 20: rows of 1,000 tokens."""
    documents = pairs((600, 200), (600, 200))
    step = build_step(
        in_order(documents), documents, blocks_of(size=20), batch_size=2, layout=PACKED
    )
    assert (step.tokens, step.supervised, step.count) == (1600, 400, 400)
    clean = sum(min(800, (place // 20 + 1) * 20) for place in range(800))
    noisy = sum(place // 20 * 20 + 20 for place in range(600, 800))
    assert step.rows == (2000, 2 * (clean + noisy))
    assert step.micro_batches[0].batch.longest == 1000


def test_an_answer_is_filled_to_the_end_of_its_block_on_the_grid() -> None:
    documents = pairs((5, 4), (3, 5), (6, 6))
    fill = EndFill(policy="grid", block=4, max_length=11, end_ids=(SEP,), fill_id=SEP)
    how = replace(blocks_of(), answers=Answers((fill,)))
    step = build_step(in_order(documents), documents, how, batch_size=3, layout=PACKED)
    assert step.lengths == (11, 8, 12), "the first to max_length, the others as they are"
    assert (step.fill, step.tokens) == (2, 29)
    for corruption in step.micro_batches[0].corruptions:
        assert corruption.count in (6, 5)


def test_a_layout_fits_rows_and_not_documents() -> None:
    documents = pairs((4, 4), (4, 4), (4, 4))
    step = build_step(
        in_order(documents),
        documents,
        blocks_of(),
        batch_size=3,
        layout=Layout(packed=True, tokens=24),
    )
    assert [micro_batch.batch.documents for micro_batch in step.micro_batches] == [2, 1]


def test_packs_draw_times_of_their_own_blocks() -> None:
    packs = [
        [(DOCUMENTS[index], Slot(0, index, index)) for index in group]
        for group in ((0, 1, 2), (3, 4))
    ]
    step = build_streamed_step(packs, blocks_of())
    assert step.rows
    assert step.rows[0] == sum(len(one.batch.ids) for one in step.micro_batches)
    for micro_batch in step.micro_batches:
        times = np.array([t for one in micro_batch.corruptions for t in one.levels.t])
        parts = np.floor((times - 1e-3) / (1 - 1e-3) * times.size).astype(int)
        assert sorted(parts.tolist()) == list(range(times.size))


def test_rules_of_a_step_follow_its_number_and_its_tokens() -> None:
    how = blocks_of(warmup=4, schedule=((0, 2), (100, 4)))

    def weights(step: int, tokens: int) -> tuple[set[float], int]:
        made = build_step(
            slots(4, 30), DOCUMENTS, how.at(step, tokens), batch_size=4, layout=PACKED
        )
        (batch,) = (one.batch for one in made.micro_batches)
        assert batch.copies
        first_block = batch.copies.limit[batch.copies.copy == 0].min().item()
        return set(batch.weight.tolist()), first_block

    assert weights(3, 99) == ({1.0}, 2)
    later, size = weights(4, 100)
    assert (len(later) > 1, size) == (True, 4)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_an_evaluation_is_the_bound_whatever_is_trained(batch_size: int) -> None:
    found = [
        evaluate(cpu(), module_of(), DOCUMENTS, blocks_of(**how), batch_size, PACKED)
        for how in (
            {},
            {"views": 2, "warmup": 9, "half_life": 0.3, "ar_weight": 0.5},
            {"mask_count": "exact", "t_sampling": "iid", "seed": 1},
        )
    ]
    assert found[0]["eval/loss"] == pytest.approx(found[1]["eval/loss"], rel=1e-6)
    assert found[0]["eval/loss"] == pytest.approx(found[2]["eval/loss"], rel=1e-6)
    buckets = [name for name in found[0] if name.startswith("eval/loss_t")]
    assert len(buckets) > 5, "a document has one time, so that losses are told apart by it"
