"""Classification probe: intervals worked by hand, separable and random labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import tiny_model, word_tokenizer

from plugin.base.errors import JobError
from plugin.evaluation.classify import Finetuning, classify, fit_head, majority, wilson
from plugin.evaluation.features import Encoder
from plugin.evaluation.rows import ProbePairs

WORDS = [f"w{number}" for number in range(35)]


def encoder(seed: int = 0) -> Encoder:
    model: Any = tiny_model("bert", seed)
    return Encoder(
        model=model.bert, tokenizer=word_tokenizer(WORDS), device=torch.device("cpu"), max_length=32
    )


def examples_of(train: list[tuple[str, str]], held_out: list[tuple[str, str]]) -> ProbePairs:
    return ProbePairs(train=train, held_out=held_out, own_split=True)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0)],
)
def test_wilson_interval_of_worked_numbers(
    correct: int, total: int, low: float, high: float
) -> None:
    """0 of 10: the upper end is z^2 / (n + z^2) = 3.8415 / 13.8415."""
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-6)


def test_wilson_interval_covers_its_share_of_samples() -> None:
    draws = torch.distributions.Binomial(50, torch.tensor(0.9)).sample((4000,)).int().tolist()
    inside = [low <= 0.9 <= high for low, high in (wilson(count, 50) for count in draws)]
    assert 0.93 < sum(inside) / 4000 < 0.98


def test_head_on_one_feature_is_the_penalised_optimum() -> None:
    """Two points at -1 and 1 (standardised as they are), two classes: by symmetry the logits are
    -+ 2 v x, and v solves 1 / (1 + exp(4 v)) = v / 2 (from the derivative of the summed loss).
    """
    head = fit_head(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2)
    logits = head(torch.tensor([[1.0]]))[0]
    v = float(logits[1] - logits[0]) / 2
    sigmoid = 1 / (1 + torch.tensor(2 * v).exp().item())
    # d/dv of 2 log(1 + exp(-2 v)) + (2 v^2) / 2 with both rows of W at -+v
    assert 2 * v == pytest.approx(4 * sigmoid, rel=1e-4)
    assert v > 0.1


def test_separable_labels_are_all_right() -> None:
    """Texts of two words, of which each label has its own."""
    rng = torch.Generator().manual_seed(0)

    def rows(count: int) -> list[tuple[str, str]]:
        found = []
        for number in range(count):
            label = number % 2
            words = torch.randint(0, 2, (6,), generator=rng) + 17 * label
            found.append((" ".join(WORDS[word] for word in words.tolist()), "ab"[label]))
        return found

    found = classify(encoder(), examples_of(rows(60), rows(40)), None)
    assert found["accuracy"] == 1.0
    assert found["ci95"] == pytest.approx([40 / (40 + 3.841459), 1.0], abs=1e-6)


def test_random_labels_are_at_chance() -> None:
    rng = torch.Generator().manual_seed(1)

    def rows(count: int) -> list[tuple[str, str]]:
        words = torch.randint(0, 35, (count, 6), generator=rng)
        labels = torch.randint(0, 2, (count,), generator=rng)
        return [
            (" ".join(WORDS[word] for word in line), "ab"[label])
            for line, label in zip(words.tolist(), labels.tolist(), strict=True)
        ]

    found = classify(encoder(), examples_of(rows(60), rows(200)), None)
    assert 0.38 < found["accuracy"] < 0.62


def test_finetuning_learns_what_a_frozen_head_cannot() -> None:
    """The label is the order of two words, which the mean of embeddings does not hold."""
    pairs = [("w1 w2", "a"), ("w2 w1", "b")] * 8
    how = Finetuning(epochs=15, learning_rate=3e-3, seed=1)
    first = classify(encoder(), examples_of(pairs, pairs), how)
    assert first["accuracy"] == 1.0
    start = encoder()
    before = [weight.detach().clone() for weight in start.model.parameters()]
    assert classify(start, examples_of(pairs, pairs), how) == first, "seeded"
    assert any(
        not torch.equal(old, new) for old, new in zip(before, start.model.parameters(), strict=True)
    )


def test_held_out_label_without_rows_to_fit_is_wrong() -> None:
    train = [("w1", "a"), ("w20", "b")] * 3
    found = classify(encoder(), examples_of(train, [("w1", "a"), ("w1", "c")]), None)
    assert found["accuracy"] == 0.5


def test_majority_is_the_frequent_label_of_the_fit() -> None:
    train = [("w1", "a"), ("w2", "a"), ("w3", "b")]
    held_out = [("w4", "b"), ("w5", "b"), ("w6", "a"), ("w7", "b")]
    assert majority(examples_of(train, held_out)) == 0.25


def test_one_label_is_refused() -> None:
    with pytest.raises(JobError) as caught:
        classify(encoder(), examples_of([("w1", "a")], [("w2", "a")]), None)
    assert caught.value.problems[0].field == "label_field"
