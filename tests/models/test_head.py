"""The gathered head: sums per document from logits worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from plugin.models.head import Rows, masked_sums

LN2, LN3 = math.log(2), math.log(3)


def test_head_sums_of_two_documents_by_hand() -> None:
    # Probabilities (1/2, 1/4, 1/4), (1/3, 1/3, 1/3), (1/8, 1/8, 3/4): the hidden states are the
    # logits themselves.
    hidden = torch.log(torch.tensor([[2.0, 1, 1], [5, 5, 5], [1, 1, 6]]))
    target, weight, document = (
        torch.tensor([0, 2, 1]),
        torch.tensor([1.0, 2.0, 10.0]),
        torch.tensor([0, 2, 2]),
    )
    sums = masked_sums(hidden, lambda states: states, Rows(target, weight, document, 3))
    assert sums.weighted.tolist() == pytest.approx([LN2, 0, 2 * LN3 + 30 * LN2], rel=1e-6)
    assert sums.nll.tolist() == pytest.approx([LN2, 0, LN3 + 3 * LN2], rel=1e-6)
    assert sums.correct.tolist()[:2] == [1, 0]


def test_head_gradient_is_weight_times_error() -> None:
    hidden = torch.log(torch.tensor([[2.0, 1, 1]])).requires_grad_()
    sums = masked_sums(
        hidden,
        lambda states: states,
        Rows(torch.tensor([1]), torch.tensor([4.0]), torch.tensor([0]), 1),
    )
    sums.weighted.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[0].tolist() == pytest.approx([2.0, -3.0, 1.0], rel=1e-6)
    assert not sums.nll.requires_grad
    assert not sums.correct.requires_grad


def test_head_loss_is_float32_for_any_states() -> None:
    hidden = torch.zeros(1, 1000, dtype=torch.bfloat16)
    sums = masked_sums(
        hidden,
        lambda states: states,
        Rows(torch.tensor([7]), torch.tensor([1.0]), torch.tensor([0]), 1),
    )
    assert sums.weighted.dtype == torch.float32
    assert sums.nll.item() == pytest.approx(math.log(1000), rel=1e-6)


def test_head_without_masked_tokens_sums_to_zero() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    sums = masked_sums(hidden, lambda states: states, Rows(none, torch.zeros(0), none, 2))
    assert sums.weighted.tolist() == [0, 0]
    sums.weighted.sum().backward()
    assert hidden.grad is not None
