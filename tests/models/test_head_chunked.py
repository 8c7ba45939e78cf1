"""The chunked head against plain cross-entropy over full logits: losses, gradients, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.tiny import FAMILIES, tiny_config, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from plugin.config.families import FAMILIES as KNOWN
from plugin.models import head
from plugin.models.backbones import BACKBONES, output_projection, unwrapped
from plugin.models.head import Rows, Sums, masked_sums
from plugin.models.lora import LoraSettings, add_adapter

M, D, V, S = 23, 12, 61, 4


@pytest.fixture(autouse=True)
def chunks_of_five_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.BUFFER, "cpu", 4 * V * 5)


def some_rows(seed: int = 0, vocabulary: int = V) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    document = torch.randint(S - 1, (M,), generator=draw)  # the last document has nothing masked
    return Rows(
        torch.randint(vocabulary, (M,), generator=draw),
        torch.rand(M, generator=draw) * 3,
        document,
        S,
    )


def some_layer(*, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(D, V, bias=bias)
    nn.init.normal_(layer.weight, std=1.5)  # far from uniform
    return layer


def some_states(seed: int = 1) -> Tensor:
    return torch.randn(M, D, generator=torch.Generator().manual_seed(seed))


def plain_sums(states: Tensor, project: Callable[[Tensor], Tensor], rows: Rows) -> Sums:
    logits = project(states).float()
    nll = F.cross_entropy(logits, rows.target, reduction="none")
    hits = (logits.argmax(-1) == rows.target).float()
    return Sums(*(rows.per_document(each) for each in (nll * rows.weight, nll.detach(), hits)))


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


@pytest.mark.parametrize("bias", [True, False])
def test_chunked_losses_and_gradients_match_full_logits(bias: bool) -> None:
    layer, states, rows = some_layer(bias=bias), some_states(), some_rows()
    rows.target[::3] = layer(states).argmax(-1)[::3]
    got, wanted = masked_sums(states, layer, rows), plain_sums(states, layer, rows)
    assert_close(got.weighted, wanted.weighted, 1e-6)
    assert_close(got.nll, wanted.nll, 1e-6)
    assert got.correct.tolist() == wanted.correct.tolist()
    assert got.correct.sum() >= 8
    assert got.weighted[-1] == 0
    for mine, plain in zip(
        gradients(masked_sums, layer, states, rows),
        gradients(plain_sums, layer, states, rows),
        strict=True,
    ):
        assert_close(mine, plain, 1e-6)


def test_chunked_head_honours_a_factor_per_document() -> None:
    layer, states, rows = some_layer(), some_states(), some_rows()
    for factor in (torch.tensor([0.0, -2.0, 5.0, 1.0]), torch.ones(S)):
        found = (
            gradients(masked_sums, layer, states, rows, factor),
            gradients(plain_sums, layer, states, rows, factor),
        )
        for mine, plain in zip(*found, strict=True):
            assert_close(mine, plain, 1e-6)


def test_chunked_second_backward_gives_same_gradient() -> None:
    layer, states, rows = some_layer(), some_states(), some_rows()
    loss = masked_sums(states, layer, rows).weighted.sum() * 3
    first, second = (
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for _ in range(2)
    )
    assert_close(second, first, 1e-6)


def test_chunked_frozen_weights_get_no_gradient() -> None:
    layer, rows = some_layer(), some_rows()
    (wanted,) = gradients(plain_sums, layer, some_states(), rows)[:1]
    layer.requires_grad_(False)
    states = some_states().requires_grad_()
    (masked_sums(states, layer, rows).weighted.sum() * 0.37).backward()
    assert states.grad is not None
    assert_close(states.grad, wanted, 1e-6)
    assert layer.weight.grad is None


def test_chunked_tied_weight_collects_both_gradients() -> None:
    found = []
    for sums in (masked_sums, plain_sums):
        layer = some_layer(bias=False)
        states = F.embedding(torch.arange(M) % V, layer.weight).tanh()
        sums(states, layer, some_rows()).weighted.sum().backward()
        found.append(layer.weight.grad)
    assert_close(*found, 1e-6)


def test_chunked_gradients_add_up_over_micro_batches() -> None:
    layer = some_layer()
    for seed in (1, 2):
        masked_sums(some_states(seed), layer, some_rows(seed)).weighted.sum().backward()
    assert layer.weight.grad is not None
    wanted = [
        torch.autograd.grad(
            plain_sums(some_states(n), layer, some_rows(n)).weighted.sum(), layer.weight
        )[0]
        for n in (1, 2)
    ]
    assert_close(layer.weight.grad, wanted[0] + wanted[1], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunked_autocast_error_is_no_larger_than_plain(dtype: torch.dtype) -> None:
    """Against float64; the margin covers chunks that round where plain code rounds once."""
    layer, states, rows = some_layer(), some_states(), some_rows()
    exact_layer = some_layer().double()
    exact = plain_sums_64(states, exact_layer, rows)
    with torch.autocast("cpu", dtype=dtype):
        mine, plain = (
            gradients(masked_sums, layer, states, rows),
            gradients(plain_sums, layer, states, rows),
        )
        losses = [sums(states, layer, rows).weighted.double() for sums in (masked_sums, plain_sums)]
    assert (losses[0] - exact[0]).norm() <= 1.1 * (losses[1] - exact[0]).norm()
    for got, reference, wanted in zip(mine, plain, exact[1:], strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() <= 1.2 * (reference - wanted).norm()


def plain_sums_64(states: Tensor, layer: nn.Linear, rows: Rows) -> list[Tensor]:
    wanted = [states.double().requires_grad_(), *layer.parameters()]
    nll = F.cross_entropy(layer(wanted[0]), rows.target, reduction="none") * rows.weight
    weighted = torch.zeros(S, dtype=torch.float64).index_add(0, rows.document, nll)
    return [weighted.detach(), *torch.autograd.grad(weighted.sum() * 0.37, wanted)]


def test_chunked_float16_gradients_do_not_underflow() -> None:
    """Weights of 1e-6 are subnormal in float16 until the scaler's factor 2**15 is applied."""
    layer, states, whole = some_layer(), some_states(), some_rows()
    rows = Rows(whole.target, whole.weight * 1e-6, whole.document, S)
    with torch.autocast("cpu", dtype=torch.float16):
        x = states.clone().requires_grad_()
        (masked_sums(x, layer, rows).weighted.sum() * 2.0**15).backward()
    assert x.grad is not None
    exact = plain_sums_64(states, some_layer().double(), rows)[1] / 0.37 * 2.0**15
    assert_close(x.grad, exact, 5e-3)


def test_chunked_bfloat16_weights_get_bfloat16_gradients() -> None:
    layer, rows = some_layer().bfloat16(), some_rows()
    states = some_states().bfloat16()
    mine, plain = (
        gradients(masked_sums, layer, states, rows),
        gradients(plain_sums, layer, states, rows),
    )
    for got, wanted in zip(mine, plain, strict=True):
        assert got.dtype == torch.bfloat16
        assert_close(got, wanted, 1e-2)


def test_chunked_head_holds_one_chunk_of_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    homes: set[int] = set()
    project = head._project

    def spy(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
        sizes.append(x.shape[0])
        homes.add(out.untyped_storage().data_ptr())
        return project(x, w, b, out)

    monkeypatch.setattr(head, "_project", spy)
    layer, states = some_layer(), some_states().requires_grad_()
    masked_sums(states, layer, some_rows()).weighted.sum().backward()
    assert sizes == [5, 5, 5, 5, 3]
    assert len(homes) == 1, "one buffer"
    sizes.clear()
    with torch.no_grad():
        assert not masked_sums(states, layer, some_rows()).weighted.requires_grad
    assert sizes == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("masked", [M, 1, 0])
def test_chunked_head_calls_a_wrapped_layer_per_chunk(masked: int) -> None:
    class Wrapped(nn.Linear):
        """A layer as peft wraps it: its forward is not its weight alone."""

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 1.5

    torch.manual_seed(0)
    layer, whole = Wrapped(D, V), some_rows()
    rows = Rows(whole.target[:masked], whole.weight[:masked], whole.document[:masked], S)
    found = []
    for sums in (masked_sums, plain_sums):
        layer.zero_grad()
        states = some_states()[:masked].requires_grad_()
        out = sums(states, layer, rows)
        out.weighted.sum().backward()
        found.append([out.weighted.detach(), out.nll, out.correct, layer.weight.grad, states.grad])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", KNOWN)
def test_transform_and_projection_equal_the_models_head(family: str) -> None:
    assert set(FAMILIES) == set(BACKBONES)
    model = tiny_model(family)
    ids = torch.tensor([[2, 9, 8, 7, 3]])
    hidden = BACKBONES[family].encode(model, ids, None)
    assert type(output_projection(model)) is nn.Linear, "the fast path"
    logits = output_projection(model)(BACKBONES[family].transform(model, hidden))
    wanted = model(input_ids=ids).logits
    shift = KNOWN[family].shift
    torch.testing.assert_close(logits[:, : 5 - shift], wanted[:, shift:], rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft reads it
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft on tied embeddings
@pytest.mark.parametrize(("family", "tied"), [("Dream", False), ("llada", True), ("bert", True)])
def test_new_tokens_under_lora_train_through_the_head(family: str, tied: bool) -> None:
    """Trainable rows of a tied head or a full copy of an untied one: no plain linear layer either."""
    tying = {"llada": "weight_tying"}.get(family, "tie_word_embeddings")
    model = tiny_model(family, **{tying: tied})
    assert tiny_config(family, **{tying: tied}).tie_word_embeddings == tied
    adapted = add_adapter(model, KNOWN[family], LoraSettings(2, 4, 0.0, "auto"), [39])
    plain = unwrapped(adapted)
    assert type(output_projection(plain)) is not nn.Linear
    draw = torch.Generator().manual_seed(0)
    whole = some_rows(vocabulary=39)
    found = []
    for sums in (masked_sums, plain_sums):
        adapted.zero_grad()
        hidden = torch.randn(M, 16, generator=draw.manual_seed(5))
        sums(
            BACKBONES[family].transform(plain, hidden), output_projection(plain), whole
        ).weighted.sum().backward()
        found.append(
            torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])
        )
    assert_close(*found, 1e-5)
