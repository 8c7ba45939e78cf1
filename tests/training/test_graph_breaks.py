"""Compiled layers in one piece with their attention, on the operator that a GPU runs.

Stand-in kernels take the place of flash attention (helpers/varlen_on_cpu.py). What is compiled, how
often, and the numbers are those of torch's tracer; the kernels alone are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import varlen_on_cpu
from helpers.compiled import (  # noqa: F401  # a fixture
    breaks,
    compiled,
    compiler,
    graphs,
    quiet_compiler,
)
from helpers.layers import batch_of, loss_and_gradient, trained
from helpers.published_checkpoints import write_checkpoint
from helpers.tiny import FAMILIES, KNOWN, PAD, assert_same_vector

from plugin.models.backbones import layers_of
from plugin.models.diffusion import DiffusionModel
from plugin.models.load import load_model
from plugin.models.lora import LoraSettings, add_adapter
from plugin.training.activation_checkpointing import NONE, set_activation_checkpointing

pytestmark = [
    pytest.mark.slow,
    quiet_compiler,
    pytest.mark.usefixtures("compiler"),
]

# ModernBERT's layers are of three kinds: the first without a norm, global and windowed ones.
KINDS = {"modernbert": 3}


def assert_one_piece(fast: DiffusionModel, family: str, plain: DiffusionModel | None) -> None:
    """Train, evaluate and train again on other sizes: no break, a graph a kind of layer and mode."""
    kinds, sizes = KINDS.get(family, 1), set()
    for step in range(4):
        batch = batch_of(6 + step, step, packed=True)
        sizes.add((batch.ids.shape[0], batch.documents, batch.longest))
        loss, slopes = loss_and_gradient(fast, batch)
        if plain:
            wanted, expected = loss_and_gradient(plain, batch)
            torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-5)
            assert_same_vector(slopes, expected)
    assert len(sizes) == 4
    assert (graphs(), breaks()) == (kinds, 0)
    fast.eval()
    for step in range(3):
        with torch.no_grad():
            fast(batch_of(7 + step, step, packed=True))
    fast.train()
    loss_and_gradient(fast, batch_of(5, 9, packed=True))
    assert (graphs(), breaks()) == (2 * kinds, 0)


@pytest.fixture(autouse=True)
def _kernels() -> None:
    varlen_on_cpu.register()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_graph_breaks_at_attention(family: str) -> None:
    shape: dict[str, Any] = {"num_hidden_layers": 5}
    plain = trained(family, "none", "loop", **shape)
    assert_one_piece(compiled(trained(family, "none", "varlen", **shape)), family, plain)


@pytest.mark.parametrize(("family", "mode"), [("modernbert", "full"), ("llada", "none")])
def test_no_graph_breaks_with_adapters(family: str, mode: str) -> None:
    shape: dict[str, Any] = {"num_hidden_layers": 4, "dropout": 0.0}
    plain = trained(family, "none", "loop", **shape)
    assert_one_piece(compiled(trained(family, mode, "varlen", **shape)), family, plain)


def test_no_graph_breaks_between_recomputed_and_other_layers() -> None:
    """They share the graph of their kind."""
    shape: dict[str, Any] = {"num_hidden_layers": 4}
    plain = trained("llada", "none", "loop", **shape)
    fast = compiled(trained("llada", "full", "varlen", recomputed=2, **shape))
    recomputed = [layer.gradient_checkpointing for layer in layers_of(fast.model)]
    assert recomputed == [True, True, False, False]
    assert_one_piece(fast, "llada", plain)


def test_no_graph_breaks_in_four_bit_layers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", "dream", ["how are you", "fine, thanks"])
    model: Any = load_model(str(folder), dtype=torch.bfloat16, four_bit=True)
    family = model.config.model_type
    model = add_adapter(model, KNOWN[family], LoraSettings(4, 8, 0.0, "auto"), [])
    set_activation_checkpointing(model, NONE)
    fast = compiled(DiffusionModel(model, PAD, "varlen").train())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_one_piece(fast, family, None)
