"""Compilation of layers: equal numbers and names, each kind of layer compiled once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.compiled import compiled, compiler, graphs, quiet_compiler  # noqa: F401  # a fixture
from helpers.layers import batch_of, loss_and_gradient, trained
from helpers.tiny import assert_same_vector
from torch._dynamo.utils import counters

from plugin.models.attention import Segments


@pytest.mark.slow
@quiet_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("family", "mode"), [("bert", "none"), ("llada", "full")])
def test_compiled_layers_are_equal_and_compiled_once(family: str, mode: str) -> None:
    """Three layers share their graphs, checkpointed or not, for batches of any length."""
    plain = trained(family, "none", "loop", num_hidden_layers=3)
    fast = compiled(trained(family, mode, "loop", num_hidden_layers=3))
    lengths, counted = set(), []
    for step in range(6):
        batch = batch_of(6 + step, step, packed=True)
        lengths.add(batch.ids.shape[0])
        (wanted, slopes), (loss, found) = (
            loss_and_gradient(plain, batch),
            loss_and_gradient(fast, batch),
        )
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-5)
        assert_same_vector(found, slopes, 1e-6)
        counted.append(graphs())
    assert len(lengths) == 6
    assert 0 < counted[0] == counted[-1] <= 6


@pytest.mark.slow
@quiet_compiler
@pytest.mark.usefixtures("compiler")
def test_padded_masks_compile_each_layer_once() -> None:
    """ModernBERT's two masks have one layout, for any number of layers and lengths."""
    counted = []
    for layers in (3, 9):
        fast = compiled(trained("modernbert", "none", None, num_hidden_layers=layers))
        for step in range(4):
            loss_and_gradient(fast, batch_of(6 + step, step, packed=False))
        counted.append(graphs())
        counters.clear()
        torch._dynamo.reset()
    assert 0 < counted[0] == counted[1] <= 8


def test_segments_hold_no_cache_that_is_guarded() -> None:
    """torch 2.11 guards on the contents of a compiled layer's arguments.

    A dict of masks meant a recompilation for every batch.
    """
    batch = batch_of(6, 0, packed=True)
    segments = Segments.of(batch, "dense")
    before = dict(vars(segments))
    first = segments.together(4)
    assert segments.together(4) is first, "made once"
    assert vars(segments) == before
    assert not [name for name, value in before.items() if isinstance(value, dict)]


@pytest.mark.slow
@quiet_compiler
@pytest.mark.usefixtures("compiler")
def test_attention_is_not_compiled() -> None:
    seen: list[bool] = []
    module = trained("bert", "none", "loop", num_hidden_layers=1)
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(torch.compiler.is_compiling())
        return plain(*args, **options)

    compiled(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        batch = batch_of(6, 0, packed=True)
        module(batch)
    assert seen
    assert not any(seen)
    assert graphs() > 0
