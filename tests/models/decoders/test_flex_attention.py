"""FlexAttention of rows with noisy copies: what is seen, its blocks, its numbers, its compilations.

torch has kernels for a GPU alone. What is compiled and how often is that of its tracer; the numbers
are those of the operator that the kernels implement, forward and backward.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.compiled import compiled, compiler, graphs, quiet_compiler  # noqa: F401  # a fixture
from helpers.copied_rows import copied_rows
from helpers.tiny import PAD, assert_same_vector, gradient, tiny_config, tiny_model
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from plugin.batch import Batch, sees
from plugin.models import attention
from plugin.models.attention import Segments
from plugin.models.configuration import set_attention
from plugin.models.decoders import flex_attention as ours
from plugin.models.diffusion import DiffusionModel
from plugin.run.facts import BlockFacts
from plugin.training.activation_checkpointing import Recompute, set_activation_checkpointing

BLOCK = 8  # of the kernel's table, here
LENGTHS = [
    [(5, 7)],
    [(0, 3), (13, 40), (9, 1), (2, 11)],
    [(30, 60), (70, 5), (1, 1)],
    [(16, 16), (8, 8), (4, 70)],
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "BLOCK", BLOCK)
    monkeypatch.setattr(ours, "MULTIPLE", 4 * BLOCK)


@pytest.fixture
def _on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    compiler: None,  # noqa: F811
) -> None:
    """The operator itself, traced and differentiated, without the kernels of a GPU.

    torch refuses gradients of a CPU's tensors, for its CPU kernels have none.
    """

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("flex ran uncompiled")

    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_warn_once", refuse)
    monkeypatch.setattr(ours, "COMPILER", "aot_eager")


def allowed(batch: Batch) -> Tensor:
    """Return bool [N, N], by the rule itself."""
    copies = batch.copies
    assert copies is not None
    copy, limit = copies.copy, copies.limit
    pairs = sees(copy[:, None], limit[:, None], copy, limit, batch.position)
    return pairs & (batch.document[:, None] == batch.document)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_intervals_are_the_rule_and_the_table_is_exact(
    lengths: list[tuple[int, int]], size: int, causal: bool
) -> None:
    for views in (1, 2):
        batch = copied_rows(lengths, size=size, views=views, causal=causal)
        seen = ours.seen(Segments.of(batch, "flex"))
        N, L = batch.ids.shape[0], seen.begin.shape[0]
        assert L % (4 * BLOCK) == 0
        assert 0 <= L - N < 4 * BLOCK
        wanted = torch.eye(L, dtype=torch.bool)  # padding sees itself, and nobody sees padding
        wanted[:N, :N] = allowed(batch)
        exact = torch_flex.create_block_mask(seen.mask, 1, 1, L, L, "cpu", BLOCK)
        mask = torch_flex.create_mask(seen.mask, 1, 1, L, L, "cpu")[0, 0]
        assert mask.equal(wanted)
        table = ours.block_mask(Segments.of(batch, "flex"))
        assert table.to_dense().equal(exact.to_dense()), "the same blocks"
        found, full = (
            torch_flex._ordered_to_dense(one.full_kv_num_blocks, one.full_kv_indices, L // BLOCK)
            for one in (table, exact)
        )
        assert (found <= full).all(), "of two intervals that fill a block together, pairs are asked"
        if size < BLOCK:
            assert found.equal(full)
        for name in ("kv", "full_kv"):  # for the backward pass, the transposed table
            pairs = (
                torch_flex._ordered_to_dense(
                    getattr(table, f"{each}_num_blocks"),
                    getattr(table, f"{each}_indices"),
                    L // BLOCK,
                )[0, 0]
                for each in (name, name.replace("kv", "q"))
            )
            assert next(pairs).equal(next(pairs).T)


def test_a_long_context_is_full_blocks() -> None:
    """The kernel asks about no pair of them: the clean context of a long answer is most of its row."""
    table = ours.block_mask(Segments.of(copied_rows([(64, 128)], size=8, views=2), "flex"))
    assert table.full_kv_num_blocks is not None
    assert table.full_kv_num_blocks.sum() > 10 * table.kv_num_blocks.sum()


@pytest.mark.parametrize("causal", [False, True])
def test_documents_without_copies_see_themselves_alone(causal: bool) -> None:
    batch = copied_rows([(3, 9), (20, 5)], views=0)
    batch = Batch(**{**vars(batch), "copies": None})
    seen = ours.seen(Segments.of(batch, "flex", causal=causal))
    N, L = batch.ids.shape[0], seen.begin.shape[0]
    mask = torch_flex.create_mask(seen.mask, 1, 1, L, L, "cpu")[0, 0, :N, :N]
    same = batch.document[:, None] == batch.document
    assert mask.equal(same.tril() if causal else same)


def test_making_the_mask_never_reads_the_device() -> None:
    """A meta tensor cannot be read, so that any wait for a GPU fails here."""
    batch = copied_rows([(5, 7), (13, 40)]).to(torch.device("meta"))
    seen = ours.seen(Segments.of(batch, "flex"))
    assert {each.shape[0] for each in seen} == {seen.begin.shape[0]}
    assert ours._table(seen).kv_num_blocks.device.type == "meta"


def test_a_micro_batch_has_one_mask() -> None:
    segments = Segments.of(copied_rows([(5, 7)]), "flex")
    assert ours.block_mask(segments) is ours.block_mask(segments)


def heads(N: int, *, learns: bool) -> list[Tensor]:
    """Three query heads a key head, as in SmolLM2."""
    draw = torch.Generator().manual_seed(N)
    return [
        torch.randn(1, heads, N, 16, generator=draw).requires_grad_(learns) for heads in (6, 2, 2)
    ]


@pytest.mark.slow
@quiet_compiler
@pytest.mark.usefixtures("_on_a_cpu")
def test_flex_is_loop_and_compiled_once_for_each_mode() -> None:
    batches = [copied_rows(lengths, size=4 + number) for number, lengths in enumerate(LENGTHS)]
    sizes = {ours.seen(Segments.of(batch, "flex")).begin.shape[0] for batch in batches}
    assert len(sizes) >= 3
    counted = []
    for learns in (True, False, True):
        for batch in batches:
            inputs = heads(batch.ids.shape[0], learns=learns)
            found = []
            for backend in ("loop", "flex"):
                mixed = attention.BACKENDS[backend](*inputs, Segments.of(batch, backend), None, 0.3)
                slopes = torch.autograd.grad(mixed.sin().sum(), inputs) if learns else ()
                found.append([mixed.detach(), *slopes])
            for got, wanted in zip(found[1], found[0], strict=True):
                assert (got - wanted).abs().max() < 1e-5
            assert (found[1][0] - found[0][0]).abs().max() < 2e-6
        counted.append(graphs())
    assert counted == [1, 2, 2]


@pytest.mark.slow
@quiet_compiler
@pytest.mark.usefixtures("_on_a_cpu")
@pytest.mark.parametrize(("family", "mode"), [("llama", "full"), ("qwen3", "selective")])
def test_flex_compiles_itself_between_layers_and_in_checkpoints(family: str, mode: str) -> None:
    """As a GPU runs it: layers compiled around attention, recomputed or not, under autocast or not."""
    found = []
    for backend in ("loop", "flex"):
        model: Any = tiny_model(family, head_dim=16)
        set_attention(model.config, "block", BlockFacts(size=4, clean_context="block", shift=False))
        set_activation_checkpointing(model, Recompute("none" if backend == "loop" else mode))
        module = DiffusionModel(model, PAD, backend).train()
        if backend == "flex" and mode != "selective":  # of whom compiled layers keep no operation
            module = compiled(module)
        for lengths in ([(5, 7), (3, 9)], [(9, 30)]):
            module.zero_grad()
            weighted = module(copied_rows(lengths)).weighted
            weighted.sum().backward()
            found.append((weighted.detach(), gradient(module)))
        if mode == "selective":
            continue
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = module(copied_rows([(9, 30)])).weighted
        torch.testing.assert_close(half, weighted, rtol=0.1, atol=0.1)
        half.sum().backward()
    for (wanted, slopes), (got, mine) in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        assert_same_vector(mine, slopes, 1e-5)
    assert graphs() > 0


def test_flex_computes_in_half_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary tables promote queries and keys to float32."""
    seen: list[torch.dtype] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        seen.extend(x.dtype for x in (q, k, v))
        assert (how["scale"], how["enable_gqa"]) == (0.3, True)
        return q

    monkeypatch.setattr(ours, "_kernel", lambda _: kernel)
    batch = copied_rows(LENGTHS[1])
    inputs = heads(batch.ids.shape[0], learns=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ours.flex(*inputs, Segments.of(batch, "flex"), None, 0.3)
    assert mixed.shape == (1, batch.ids.shape[0], 6, 16)
    assert set(seen) == {torch.bfloat16}


def test_unavailable_flex_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = tiny_config("llama")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name == "triton")
    assert "CPU" in attention.why_no_flex(config, torch.device("cpu"))
    assert "width of 16 to 256, not 8" in attention.why_no_flex(config, cuda)
    wide = tiny_config("llama", head_dim=64)
    assert attention.why_no_flex(wide, cuda) == ""
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert "triton" in attention.why_no_flex(wide, cuda)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a T4")
    assert "a T4 is too old" in attention.why_no_flex(wide, cuda)
