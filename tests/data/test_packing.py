"""Packing: partition among ranks, micro-batches, budgets, and a step that no layout changes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiny import pairs, random_documents, rules, slots

from plugin.assembly.attention import check_fits
from plugin.base.errors import Code, JobError
from plugin.data.packing import (
    AUTO_TOKENS,
    PADDED,
    Layout,
    best_fit,
    micro_batches,
    partition,
    token_budget,
)
from plugin.training.step import Step, build_step

LENGTHS = [3, 9, 1, 9, 4, 7, 2, 8, 5, 5, 6, 1]


DOCUMENTS = random_documents(40)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 12, 20])
def test_partition_gives_each_document_to_one_rank_evenly(ranks: int) -> None:
    shards = partition(LENGTHS, ranks)
    assert len(shards) == ranks
    assert sorted(place for shard in shards for place in shard) == list(range(len(LENGTHS)))
    tokens = [sum(LENGTHS[place] for place in shard) for shard in shards]
    assert max(tokens) - min(tokens) <= max(LENGTHS)


def test_partition_worked_by_hand() -> None:
    # longest first: 9 -> rank 0, 8 -> rank 1, 3 -> rank 1 (8 < 9), 2 -> rank 0 (9 < 11), 2 -> rank
    # 0 (11 = 11)
    assert partition([2, 9, 3, 8, 2], 2) == [[1, 0, 4], [3, 2]]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12, 40])
def test_micro_batches_hold_every_place_once_by_length(batch_size: int) -> None:
    places = [11, 0, 3, 7, 8, 1]
    groups = micro_batches(places, LENGTHS, batch_size)
    assert sorted(place for group in groups for place in group) == sorted(places)
    assert all(len(group) <= batch_size for group in groups)
    assert len(groups) == -(-len(places) // batch_size)
    flat = [LENGTHS[place] for group in groups for place in group]
    assert flat == sorted(flat, reverse=True)


def test_budget_caps_padded_micro_batches_with_padding() -> None:
    lengths = [9, 9, 5, 4, 4, 1, 1, 1]
    assert micro_batches(range(8), lengths, 3, Layout(False, 18)) == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert micro_batches(range(8), lengths, 8, Layout(False, 9)) == [
        [0],
        [1],
        [2],
        [3, 4],
        [5, 6, 7],
    ]


def test_best_fit_worked_by_hand() -> None:
    # Longest first into 10: 7 opens a pack (3 left), 6 another (4 left), 4 goes where 4 are left, 3
    # where 3 are, 2 opens the third.
    assert best_fit([0, 1, 2, 3, 4], [4, 7, 2, 6, 3], 10) == [[1, 4], [3, 0], [2]]


def test_best_fit_prefers_the_fullest_pack_with_room() -> None:
    # 8 (2 left), 5 (5 left); then 2 joins the 8, although the other pack has room as well.
    assert best_fit([0, 1, 2], [8, 5, 2], 10) == [[0, 2], [1]]


@pytest.mark.parametrize("seed", range(5))
def test_packs_hold_every_document_once_within_the_budget(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, 200).tolist()
    places = list(range(3, 190))
    packs = best_fit(places, lengths, 64)
    assert sorted(place for pack in packs for place in pack) == places
    for pack in packs:
        sizes = [lengths[place] for place in pack]
        assert sum(sizes) <= 64
        assert sizes == sorted(sizes, reverse=True), "documents of one length lie side by side"
    least = -(-sum(lengths[place] for place in places) // 64)
    assert len(packs) <= 11 / 9 * least + 1


def test_automatic_pack_never_exceeds_the_padded_rectangle() -> None:
    assert token_budget([100, 512, 20], 4) == 4 * 512
    assert token_budget([100], 1) == 100
    assert token_budget([4096] * 3, 64) == AUTO_TOKENS
    assert token_budget([2 * AUTO_TOKENS], 4) == 2 * AUTO_TOKENS, "a document is never cut"
    lengths = [len(document.ids) for document in map(DOCUMENTS.__getitem__, range(40))]
    packs = micro_batches(range(40), lengths, 4, Layout(True))
    rows = micro_batches(range(40), lengths, 4, PADDED)
    assert max(sum(lengths[p] for p in pack) for pack in packs) <= max(
        len(r) * lengths[r[0]] for r in rows
    )
    assert len(packs) < len(rows)


@pytest.mark.parametrize("packed", [True, False])
def test_document_longer_than_the_budget_names_the_field(packed: bool) -> None:
    with pytest.raises(JobError) as caught:
        micro_batches([0, 1], [4, 31], 2, Layout(packed, 30))
    (problem,) = caught.value.problems
    assert problem.field == "tokens_per_batch"
    assert "31" in problem.expected
    assert problem.got == "30"
    assert problem.code == Code.CONFIGURATION
    assert micro_batches([0], [30], 2, Layout(packed, 30)) == [[0]]


@pytest.mark.parametrize(("policy", "longest"), [("single", 9), ("block", 11), ("batch", 9)])
def test_budget_check_counts_end_tokens_before_the_first_step(policy: str, longest: int) -> None:
    documents, how = pairs((3, 2), (3, 6)), rules(eos_policy=policy, eos_block=8)
    check_fits(documents, how, Layout(True, longest))
    check_fits(documents, how, Layout(True))
    with pytest.raises(JobError, match="tokens_per_batch"):
        check_fits(documents, how, Layout(True, longest - 1))
    chosen = slots(2, 2)
    assert (
        build_step(chosen, documents, how, batch_size=2, layout=Layout(True, longest)).tokens
        >= longest
    )


def content(parts: list[Step]) -> list[object]:
    return sorted(
        (index, one.levels.mean_t, one.noisy.tolist(), one.masked.tolist(), one.weight.tolist())
        for part in parts
        for micro_batch in part.micro_batches
        for index, one in zip(micro_batch.documents, micro_batch.corruptions, strict=True)
    )


@pytest.mark.parametrize("eos_policy", ["single", "block", "batch"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_layout_never_changes_the_step(ranks: int, eos_policy: str) -> None:
    how = rules(eos_policy=eos_policy)
    found = []
    for layout in (PADDED, Layout(True), Layout(True, 64), Layout(False, 70)):
        parts = [
            build_step(
                slots(16, 40), DOCUMENTS, how, batch_size=4, layout=layout, rank=rank, ranks=ranks
            )
            for rank in range(ranks)
        ]
        if layout.tokens and layout.packed:
            assert all(
                micro_batch.batch.ids.numel() <= layout.tokens
                for part in parts
                for micro_batch in part.micro_batches
            )
        first = parts[0]
        found.append((first.count, first.masked, first.tokens, first.supervised, content(parts)))
    assert all(one == found[0] for one in found[1:])
