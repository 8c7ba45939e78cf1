"""Stochastic length: a text split at random becomes two documents without loss."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.tiny import CLS, PAD, alone_in, in_order, random_documents, rules, tiny_model

from plugin.data.documents import Builder, Documents
from plugin.data.steps import Slot
from plugin.models.diffusion import DiffusionModel
from plugin.objectives.answers import Item
from plugin.training.step import StepRules, build_step, step_items


def texts(count: int, length: int, opening: bool = True) -> Documents:
    """Return pretraining pieces: word n of a text is 10 + n.

    Without a start token, the first word is not learned.
    """
    builder = Builder()
    for number in range(count):
        ids = np.arange(10, 10 + length, dtype=np.int32)
        if opening:
            ids = np.concatenate([[CLS], ids]).astype(np.int32)
        builder.add(ids, np.arange(ids.size) > 0, 1 if opening else 0, f"t:{number}")
    return builder.build()


def items(documents: Documents, how: StepRules, pass_: int = 0) -> list[Item]:
    return step_items(
        [documents[place] for place in range(len(documents))], in_order(documents, pass_), how
    )


def by_document(found: list[Item]) -> dict[int, list[Item]]:
    groups: dict[int, list[Item]] = {}
    for item in found:
        groups.setdefault(item.index, []).append(item)
    return groups


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_length_split_splits_its_share_of_documents(share: float) -> None:
    groups = by_document(items(texts(4000, 12), rules(stochastic_length=share)))
    cut = sum(len(parts) == 2 for parts in groups.values()) / 4000
    assert cut == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    assert len(groups) == 4000


def test_length_split_learns_every_word_once() -> None:
    documents = texts(400, 12)
    for index, (head, tail) in by_document(items(documents, rules(stochastic_length=1.0))).items():
        assert [*head.ids, *tail.ids[1:]] == documents[index].ids.tolist()
        assert [int(part.ids[0]) for part in (head, tail)] == [CLS, CLS], (
            "the tail opens like any text"
        )
        assert [part.supervised.tolist() for part in (head, tail)] == [
            [False] + [True] * (part.ids.size - 1) for part in (head, tail)
        ]
        assert (head.part, tail.part, tail.prompt) == (0, 1, 1)


def test_length_split_is_uniform_and_leaves_no_side_empty() -> None:
    heads = Counter(
        parts[0].ids.size
        for parts in by_document(items(texts(4000, 6), rules(stochastic_length=1.0))).values()
    )
    # [CLS] and 6 words: heads of 1 to 4 words, so tails of 5 to 2
    assert set(heads) == {2, 3, 4, 5}
    assert all(
        count == pytest.approx(1000, abs=4 * (1000 * 0.75) ** 0.5) for count in heads.values()
    )


def test_length_split_keeps_a_text_too_short_to_split() -> None:
    assert [item.ids.size for item in items(texts(20, 2), rules(stochastic_length=1.0))] == [3] * 20


def test_length_split_step_counts_heads_and_tails() -> None:
    documents, how = texts(30, 12), rules(stochastic_length=0.5, norm="token")
    tails = sum(item.part for item in items(documents, how))
    assert 5 < tails < 25
    for ranks, batch_size in ((1, 30), (1, 4), (3, 2)):
        parts = [
            build_step(
                in_order(documents), documents, how, batch_size=batch_size, rank=rank, ranks=ranks
            )
            for rank in range(ranks)
        ]
        for step in parts:
            assert step.tokens == 30 * 13 + tails
            assert step.supervised == step.count == 30 * 12
        held = Counter(
            index
            for step in parts
            for micro_batch in step.micro_batches
            for index in micro_batch.documents
        )
        assert sorted(held.values()) == sorted([1] * (30 - tails) + [2] * tails)


def test_length_split_head_and_tail_have_their_own_times() -> None:
    documents = texts(40, 40)
    for t_sampling in ("stratified", "iid"):
        step = build_step(
            in_order(documents),
            documents,
            rules(stochastic_length=1.0, t_sampling=t_sampling),
            batch_size=80,
        )
        times = [
            one.levels.mean_t
            for micro_batch in step.micro_batches
            for one in micro_batch.corruptions
        ]
        assert len(set(times)) == 80


def test_length_split_depends_on_seed_document_and_pass() -> None:
    documents, how = texts(50, 20), rules(stochastic_length=0.5)

    def sizes(how: StepRules, pass_: int = 0) -> list[int]:
        return [item.ids.size for item in items(documents, how, pass_)]

    assert sizes(how) == sizes(how)
    assert sizes(how) != sizes(how, 1)
    assert sizes(how) != sizes(rules(stochastic_length=0.5, seed=8))
    one = step_items([documents[7]], [Slot(0, 7, 7)], how)
    assert [item.ids.size for item in one] == [
        item.ids.size for item in by_document(items(documents, how))[7]
    ]


def test_length_split_without_start_token_masks_no_first_word() -> None:
    """No family predicts a document's first token: Dream would do so in the document before it."""
    documents = texts(60, 9, opening=False)
    how = rules(stochastic_length=1.0, t_min=0.999, start_id=None)
    for head, tail in by_document(items(documents, how)).values():
        assert [*head.ids, *tail.ids] == documents[0].ids.tolist()
        assert not head.supervised[0]
        assert not tail.supervised[0]
    step = build_step(in_order(documents), documents, how, batch_size=8)
    for micro_batch in step.micro_batches:
        assert all((one.masked > 0).all() for one in micro_batch.corruptions)


def test_length_split_dream_learns_head_and_tail_apart() -> None:
    documents, model = random_documents(12), tiny_model("Dream")
    (micro_batch,) = build_step(
        in_order(documents), documents, rules(stochastic_length=1.0, t_min=0.5), batch_size=24
    ).micro_batches
    assert micro_batch.batch.documents > 18
    wanted = torch.stack(alone_in(model, micro_batch.batch))
    assert wanted.max() > 10
    torch.testing.assert_close(
        DiffusionModel(model, PAD)(micro_batch.batch).weighted, wanted, rtol=1e-5, atol=1e-5
    )
