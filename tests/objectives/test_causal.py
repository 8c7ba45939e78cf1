"""Causal objective: what is predicted, with which weight, and what the loss is divided by."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiny import document_item, rules

from plugin.objectives.answers import Item
from plugin.objectives.causal import OBJECTIVE, next_tokens, weight_one
from plugin.objectives.masked import Corruption, WholeDocuments
from plugin.objectives.noise import Levels

IDS = np.array([2, 9, 9, 8, 7, 3], np.int32)


def predicted(item: Item, norm: str = "token", **noise: object) -> Corruption:
    made = rules(norm=norm, weight=weight_one(None), **noise)
    drawn = Levels.of("linear", [0.7], [item.ids.size])
    (one,) = next_tokens(item, drawn, made.noise, made.loss)
    return one


def answer(prompt: int) -> Item:
    return document_item(IDS, np.arange(IDS.size) >= prompt, prompt)


def test_nothing_is_masked_and_every_answer_token_predicted() -> None:
    one = predicted(answer(3))
    assert one.noisy.tolist() == IDS.tolist()
    assert one.masked.tolist() == [3, 4, 5]
    assert one.weight.tolist() == [1, 1, 1]
    assert one.count == 3


def test_the_first_token_is_not_predicted() -> None:
    one = predicted(answer(0))
    assert one.masked.tolist() == [1, 2, 3, 4, 5]
    assert one.count == 5


@pytest.mark.parametrize(
    ("norm", "weight", "count"),
    [("token", 1, 3), ("masked", 1, 3), ("sequence", 1 / 3, 1), ("batch", 1, 1)],
)
def test_every_norm_is_of_the_predicted_tokens(norm: str, weight: float, count: float) -> None:
    one = predicted(answer(3), norm)
    assert one.weight.tolist() == pytest.approx([weight] * 3)
    assert one.count == count


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_noise_does_not_matter_and_is_reported_as_none(schedule: str) -> None:
    one = predicted(answer(3), schedule=schedule, complementary=True, mask_count="exact")
    assert one.masked.tolist() == [3, 4, 5]
    assert one.levels.mean_probability == pytest.approx(0, abs=1e-9)
    assert one.levels.mean_t == 0


def test_a_document_of_one_token_has_nothing_to_predict() -> None:
    one = predicted(document_item(IDS[:1], np.array([True]), 0))
    assert (one.masked.size, one.count) == (0, 0)


def test_the_objective_uses_these() -> None:
    assert OBJECTIVE.noising(None) == WholeDocuments(next_tokens)
    assert OBJECTIVE.weight is weight_one
