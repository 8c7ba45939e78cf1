"""The head's forbidden output and certainty term, fused and called, against autograd over full logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plugin.models import head
from plugin.models.head import Rows, Sums, Terms, masked_sums

M, D, V, S = 23, 12, 61, 4


@pytest.fixture(autouse=True)
def chunks_of_five_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.BUFFER, "cpu", 4 * V * 5)


def some_rows(seed: int = 0) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    document = torch.randint(S - 1, (M,), generator=draw)  # the last document has nothing masked
    target = torch.randint(V, (M,), generator=draw)
    return Rows(target, torch.rand(M, generator=draw) * 3, document, S)


def some_layer() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(D, V)
    nn.init.normal_(layer.weight, std=1.5)  # far from uniform
    return layer


def some_states(seed: int = 1) -> Tensor:
    return torch.randn(M, D, generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, wanted: Tensor, relative: float) -> None:
    assert wanted.norm() > 0
    assert (got.double() - wanted.double()).norm() <= relative * wanted.double().norm()


def gradients(
    sums: Callable[..., Sums],
    layer: nn.Linear,
    states: Tensor,
    rows: Rows,
    factor: Tensor | None = None,
) -> list[Tensor]:
    """Return gradients of the states, then of the layer's parameters.

    `factor` [S] weighs the documents; None means their sum.
    """
    wanted = [states.clone().requires_grad_(), *layer.parameters()]
    weighted = sums(wanted[0], layer, rows).weighted
    return list(
        torch.autograd.grad(weighted.sum() * 0.37 if factor is None else weighted, wanted, factor)
    )


def entropy(logits: Tensor) -> Tensor:
    """H(softmax(z / T)) of each row by its definition; -inf has no part in it."""
    p = (logits / head.TEMPERATURE).softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


def terms_sums(
    states: Tensor, project: Callable[[Tensor], Tensor], rows: Rows, terms: Terms
) -> Sums:
    """The sums over full logits, by autograd alone."""
    logits = project(states).float()
    if terms.forbidden is not None:
        logits = logits.index_fill(1, torch.tensor([terms.forbidden]), -torch.inf)
    nll = F.cross_entropy(logits, rows.target, reduction="none")
    hits = (logits.argmax(-1) == rows.target).float()
    unit = torch.ones(len(rows.weight)) if rows.unit is None else rows.unit
    kept = torch.ones(logits.shape[1], dtype=torch.bool)
    if terms.forbidden is not None:
        kept[terms.forbidden] = False
    loss = nll * rows.weight + terms.certainty * unit * hits * entropy(logits[:, kept])
    return Sums(*(rows.per_document(each) for each in (loss, nll.detach(), hits)))


def right_rows(layer: nn.Linear, states: Tensor, forbidden: int | None = None) -> Rows:
    """Rows of which every other one is predicted right, with units that differ."""
    whole = some_rows()
    logits = layer(states).detach()
    if forbidden is not None:
        logits[:, forbidden] = -torch.inf
        whole.target[whole.target == forbidden] = (forbidden + 1) % V
    whole.target[::2] = logits.argmax(-1)[::2]
    unit = torch.rand(M, generator=torch.Generator().manual_seed(9)) + 0.5
    return replace(whole, unit=unit)


BOTH = [
    Terms(forbidden=7),
    Terms(certainty=2.0),
    Terms(forbidden=7, certainty=2.0),
]


class Wrapped(nn.Linear):
    """A layer as peft wraps it: its forward is not its weight alone."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 1.0


@pytest.mark.parametrize("kind", [nn.Linear, Wrapped])
@pytest.mark.parametrize("terms", BOTH)
def test_terms_match_autograd_over_full_logits(terms: Terms, kind: type[nn.Linear]) -> None:
    layer = some_layer()
    project = kind(D, V)
    project.load_state_dict(layer.state_dict())
    rows = right_rows(layer, some_states(), terms.forbidden)
    factors = (None, torch.tensor([0.0, -2.0, 5.0, 1.0]))
    for factor in factors:
        found = []
        for sums, module in ((masked_sums, project), (terms_sums, layer)):
            got = partial(sums, terms=terms)
            found.append(gradients(got, module, some_states(), rows, factor))
        for mine, plain in zip(*found, strict=True):
            assert_close(mine, plain, 2e-6)
    got, wanted = (
        masked_sums(some_states(), project, rows, terms),
        terms_sums(some_states(), layer, rows, terms),
    )
    assert_close(got.weighted, wanted.weighted, 1e-6)
    assert_close(got.nll, wanted.nll, 1e-6)
    assert got.correct.tolist() == wanted.correct.tolist()
    assert got.correct.sum() >= 8


@pytest.mark.parametrize("kind", [nn.Linear, Wrapped])
def test_a_forbidden_output_is_no_output_however_likely(kind: type[nn.Linear]) -> None:
    layer = kind(D, V)
    states = some_states().requires_grad_()
    with torch.no_grad():
        layer.bias[7] = 50.0  # the likeliest token of every row
    rows = right_rows(layer, states, forbidden=7)
    plain = masked_sums(states, layer, rows)
    assert plain.correct.sum() == 0
    found = masked_sums(states, layer, rows, Terms(forbidden=7))
    assert found.correct.sum() >= 8
    assert found.nll.sum() < plain.nll.sum() / 5
    found.weighted.sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert not layer.weight.grad[7].any()
    assert layer.bias.grad[7] == 0
    assert layer.bias.grad.isfinite().all()
    assert states.grad is not None
    assert states.grad.isfinite().all()


@pytest.mark.parametrize("fused", [True, False])
def test_certainty_of_logits_two_and_zero(fused: bool) -> None:
    # H of (e^2, 1) / (e^2 + 1) is .3653; at T = .5, of (e^4, 1) / (e^4 + 1), it is .0901.
    project = nn.Linear(2, 2, bias=False) if fused else lambda states: states.clone()
    if isinstance(project, nn.Linear):
        nn.init.eye_(project.weight)
    states = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    rows = Rows(torch.tensor([0, 1]), torch.zeros(2), torch.tensor([0, 1]), 2)
    found = masked_sums(states, project, rows, Terms(certainty=1.0)).weighted
    assert found.tolist() == pytest.approx([0.0901, 0], abs=5e-5), "a wrong prediction costs none"
    assert entropy(torch.tensor([1.0, 0.0])).item() == pytest.approx(0.3653, abs=5e-5)


@pytest.mark.parametrize("kind", [nn.Linear, Wrapped])
def test_certainty_gives_wrong_positions_no_gradient(
    kind: type[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.BUFFER, "cpu", 4 * V * 3 * M)  # one chunk, with the term and without
    layer = kind(D, V)
    rows = right_rows(layer, some_states())
    found = []
    for terms in (Terms(), Terms(certainty=3.0)):
        states = some_states().requires_grad_()
        masked_sums(states, layer, rows, terms).weighted.sum().backward()
        assert states.grad is not None
        found.append(states.grad)
    right = layer(some_states()).argmax(-1) == rows.target
    assert 8 <= right.sum() < M
    same = (found[0] == found[1]).all(1)
    assert same[~right].all()
    assert not same[right].any()


@pytest.mark.parametrize("kind", [nn.Linear, Wrapped])
def test_certainty_of_zero_changes_no_bit(kind: type[nn.Linear]) -> None:
    layer = kind(D, V)
    rows = right_rows(layer, some_states())
    plain = replace(rows, unit=None)
    assert masked_sums(some_states(), layer, rows, Terms(certainty=0.0)).weighted.equal(
        masked_sums(some_states(), layer, plain).weighted
    )
    found = [
        gradients(masked_sums, layer, some_states(), plain),
        gradients(partial(masked_sums, terms=Terms(certainty=0.0)), layer, some_states(), rows),
    ]
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


def test_certainty_holds_no_more_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs three tables of a chunk, so chunks are a third as long."""
    sizes: list[int] = []
    project = head._project

    def spy(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
        sizes.append(x.shape[0])
        return project(x, w, b, out)

    monkeypatch.setattr(head, "_project", spy)
    monkeypatch.setitem(head.BUFFER, "cpu", 4 * V * 15)
    masked_sums(some_states(), some_layer(), some_rows(), Terms(certainty=1.0))
    assert sizes == [5, 5, 5, 5, 3]
