"""Answers before the noise: cut, filled, shown up to a block, alike for every split of a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from helpers.tiny import SEP, in_order, pair, pairs, random_documents, rules, slots

from plugin.data.documents import Builder
from plugin.data.steps import Slot
from plugin.objectives.answers import Item
from plugin.training.step import StepRules, build_step, step_items

DOCUMENTS = random_documents(30)
EOT, END_OF_TEXT = 6, SEP


def items(documents: Any, chosen: list[Slot], how: StepRules) -> list[Item]:
    return step_items([documents[slot.index] for slot in chosen], chosen, how)


def one_item(prompt: int, answer: int, pass_: int, **how: Any) -> Item:
    (item,) = items(pairs((prompt, answer)), [Slot(pass_, 0, 0)], rules(**how))
    return item


def test_block_borders_long_answer_is_full_half_of_the_time() -> None:
    # 20 answer tokens behind 3: filled to 24, three blocks of 8. Borders after 8 and 16.
    shown = [one_item(3, 20, pass_, eos_policy="block") for pass_ in range(2000)]
    whole = [*pair(3, 20)[0].tolist(), *[SEP] * 4]
    for item in shown:
        assert item.ids.tolist() == whole[: item.ids.size]
        assert np.flatnonzero(item.supervised).tolist() == list(range(3, item.ids.size))
    shares = {
        size: count / 2000 for size, count in Counter(item.ids.size for item in shown).items()
    }
    assert shares == {
        27: pytest.approx(0.5, abs=0.045),
        11: pytest.approx(0.25, abs=0.04),
        19: pytest.approx(0.25, abs=0.04),
    }


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["token", "sequence", "masked", "batch"])
@pytest.mark.parametrize("count", ["bernoulli", "exact"])
def test_block_borders_every_token_has_equal_weight(norm: str, count: str) -> None:
    """Each token of a long answer, end and fill included, has the canvas's mean loss weight.

    The means are over 8,000 passes.
    """
    documents, passes = pairs((3, 20)), 8_000
    how = rules(
        eos_policy="block", norm=norm, mask_count=count, t_min=0.5
    )  # tame weights: 1/t within [1, 2]
    summed, divisor = np.zeros(27), 0.0
    for pass_ in range(passes):
        (one,) = (
            build_step([Slot(pass_, 0, 0)], documents, how, batch_size=1)
            .micro_batches[0]
            .corruptions
        )
        summed[one.masked] += one.weight
        divisor += one.count
    expected = (
        1 / 24 if norm == "sequence" else 1.0
    )  # E[1/t x t] = 1 a token; sequence divides by the answer's 24
    assert summed[:3].tolist() == [0, 0, 0]
    # One weight's deviation is below 2 (three halves of the time absent, else at most 2 x 2): 5
    # errors of the mean.
    assert summed[3:] / passes == pytest.approx(
        np.full(24, expected), abs=5 * 2 * expected / passes**0.5
    )
    mean = {"token": 24, "sequence": 1, "batch": 1, "masked": 24 * 0.75}[norm]  # t has the mean .75
    assert divisor / passes == pytest.approx(mean, rel=0.05 if norm == "masked" else 1e-12)


def test_block_borders_cut_tokens_are_counted() -> None:
    documents, how = pairs((3, 20)), rules(eos_policy="block")
    seen = set()
    for pass_ in range(100):
        step = build_step([Slot(pass_, 0, 0)], documents, how, batch_size=1)
        seen.add((sum(step.lengths), step.tokens, step.fill, step.supervised, step.cut))
    assert seen == {(27, 23, 4, 24, 0), (19, 19, 0, 16, 4), (11, 11, 0, 8, 12)}


def test_undisturbed_rules_show_full_answers() -> None:
    """Evaluation and the preview of `check` promise full answers."""
    how = rules(eos_policy="block").undisturbed()
    for pass_ in range(50):
        (item,) = items(pairs((3, 20)), [Slot(pass_, 0, 0)], how)
        assert (item.ids.size, item.scale, item.left_out) == (27, None, 0)


def test_block_borders_answer_of_one_block_is_always_full() -> None:
    assert {one_item(3, 8, pass_, eos_policy="block").ids.size for pass_ in range(200)} == {11}
    assert {one_item(3, 2, pass_, eos_policy="block").ids.size for pass_ in range(200)} == {11}


@pytest.mark.parametrize(("policy", "size"), [("single", 23), ("batch", 23)])
def test_eos_policies_single_and_batch_show_full_answers(policy: str, size: int) -> None:
    assert {one_item(3, 20, pass_, eos_policy=policy).ids.size for pass_ in range(200)} == {size}


def test_block_borders_block_cut_by_max_length_counts() -> None:
    # 14 answer tokens need 16 places; max_length leaves 14: borders after 8 only.
    sizes = {
        one_item(3, 14, pass_, eos_policy="block", max_length=17).ids.size for pass_ in range(200)
    }
    assert sizes == {11, 17}


def test_block_borders_depend_on_seed_document_and_pass() -> None:
    how, documents = rules(eos_policy="block", eos_block=2), DOCUMENTS
    chosen = slots(30, 30)
    together = [item.ids.size for item in items(documents, chosen, how)]
    alone = [items(documents, [slot], how)[0].ids.size for slot in chosen]
    assert together == alone
    later = [
        items(documents, [Slot(slot.pass_ + 1, slot.ordinal, slot.index)], how)[0].ids.size
        for slot in chosen
    ]
    other = [
        items(documents, [slot], rules(eos_policy="block", eos_block=2, seed=8))[0].ids.size
        for slot in chosen
    ]
    assert together != later
    assert together != other


@pytest.mark.parametrize(("policy", "length"), [("single", 6), ("block", 11), ("batch", 9)])
def test_eos_fill_of_a_llada_answer_is_end_of_text(policy: str, length: int) -> None:
    """`<|eot_id|>` ends an answer, `<|endoftext|>` fills the space behind it: both are learned."""
    builder = Builder()
    for prompt, answer in ((3, 3), (3, 6)):
        ids, supervised, _ = pair(prompt, answer)
        builder.add(np.where(ids == SEP, EOT, ids).astype(np.int32), supervised, prompt, "r")
    how = rules(eos_policy=policy, end_ids=(EOT, END_OF_TEXT), fill_id=END_OF_TEXT)
    documents = builder.build()
    first = items(documents, in_order(documents), how)[0]
    assert first.ids[3:].tolist() == [8, 8, EOT, *[END_OF_TEXT] * (length - 6)]
    assert first.supervised[3:].all()
    assert not first.supervised[:3].any()


def test_eos_batch_fill_reaches_the_longest_of_all_ranks() -> None:
    documents, how = pairs((3, 2), (3, 12), (5, 3), (2, 4)), rules(eos_policy="batch")
    for ranks, batch_size in ((1, 4), (1, 1), (2, 1), (4, 1)):
        for rank in range(ranks):
            step = build_step(
                in_order(documents), documents, how, batch_size=batch_size, rank=rank, ranks=ranks
            )
            assert {
                one.noisy.size
                for micro_batch in step.micro_batches
                for one in micro_batch.corruptions
            } == {15}
            assert (sum(step.lengths), step.tokens) == (60, 34)


def test_eos_fill_leaves_a_cut_answer_alone() -> None:
    """The answer did not end there: end tokens would teach the model to stop within a sentence."""
    documents = pairs((3, 2), (3, 12))
    how = rules(eos_policy="batch", perbatch_cutoff=True)
    seen = set()
    for pass_ in range(40):
        short, long = items(documents, in_order(documents, pass_), how)
        seen.add((short.ids.size, long.ids.size))
        assert long.ids.size == 15 or SEP not in long.ids.tolist()
    assert seen == {(15, 15), (5, 5)}


CUT = {"perbatch_cutoff": True, "resp_cutoff_ratio": 0.5}


def test_cutoffs_combine_and_keep_the_only_answer_token() -> None:
    documents = pairs((3, 4), (3, 9), (3, 1))
    kept = set()
    for pass_ in range(400):
        found = items(
            documents,
            in_order(documents, pass_),
            rules(perbatch_cutoff=True, resp_cutoff_ratio=1.0),
        )
        kept.add(tuple(item.ids.size - 3 for item in found))
        assert all(item.supervised[3:].all() and item.supervised.any() for item in found)
    assert kept == {(4, 9, 1), (4, 4, 1), (1, 1, 1)}, "a response of one token stops the second cut"

    documents, kept = pairs((3, 4), (3, 9)), set()
    for pass_ in range(400):
        found = items(
            documents,
            in_order(documents, pass_),
            rules(perbatch_cutoff=True, resp_cutoff_ratio=1.0),
        )
        kept.add(tuple(item.ids.size - 3 for item in found))
    # perbatch keeps (4, 9) or (4, 4); then 1, 2 or 3 more are cut from every end
    assert kept == {(4 - cut, other - cut) for other in (4, 9) for cut in (1, 2, 3)}


def test_cutoffs_cut_tokens_are_counted() -> None:
    documents = pairs((3, 4), (3, 9), (2, 6))
    for pass_ in range(30):
        step = build_step(in_order(documents, pass_), documents, rules(**CUT), batch_size=3)
        assert step.cut == 19 - step.supervised
        assert step.tokens == 27 - step.cut
    assert build_step(in_order(documents), documents, rules(), batch_size=3).cut == 0


def test_cutoffs_are_the_same_for_any_rank_and_batch_size() -> None:
    """A rank with its own draws would cut its documents to another length, with another divisor."""
    lengths: dict[tuple[int, int], dict[int, int]] = {}
    steps = {}
    for ranks, batch_size in ((1, 16), (1, 3), (2, 4), (4, 2)):
        parts = [
            build_step(
                slots(16, 30, step=3),
                DOCUMENTS,
                rules(norm="masked", **CUT),
                batch_size=batch_size,
                rank=rank,
                ranks=ranks,
            )
            for rank in range(ranks)
        ]
        lengths[ranks, batch_size] = {
            index: one.noisy.size
            for part in parts
            for micro_batch in part.micro_batches
            for index, one in zip(micro_batch.documents, micro_batch.corruptions, strict=True)
        }
        steps[ranks, batch_size] = {
            (part.count, part.masked, part.tokens, part.supervised, part.cut) for part in parts
        }
    (whole,) = steps[1, 16]
    assert whole[-1] > 0, "something is cut"
    assert all(found == {whole} for found in steps.values())
    assert all(found == lengths[1, 16] for found in lengths.values())


def test_cutoffs_differ_by_step_and_pass() -> None:
    def cuts(pass_: int) -> list[int]:
        found = []
        for step in range(12):
            chosen = [
                Slot(pass_, 8 * step + place, slot.index)
                for place, slot in enumerate(slots(8, 30, step=1))
            ]
            found.append(build_step(chosen, DOCUMENTS, rules(**CUT), batch_size=8).cut)
        return found

    assert len(set(cuts(0))) > 4
    assert cuts(0) != cuts(1)
    assert cuts(0) == cuts(0)
