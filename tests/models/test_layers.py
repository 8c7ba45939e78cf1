"""Recomputed and compiled layers: the same numbers, less memory, the same names."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.tiny import (
    FAMILIES,
    PAD,
    adapted,
    assert_same_vector,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_model,
)
from torch._dynamo.utils import counters
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from plugin.batch import Batch
from plugin.data.packing import Layout
from plugin.models.attention import NAME, Segments, document_attention
from plugin.models.diffusion import DiffusionModel, bare
from plugin.training.layers import compile_layers, set_recompute
from plugin.training.memory import Tracker
from plugin.training.step import build_step

DOCUMENTS = random_documents(60, longest=26)
LAYOUTS = (None, "loop")  # padded, and packed by a loop over documents
MODES = ("none", "selective", "full")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_layout = pytest.mark.parametrize("attention", LAYOUTS, ids=["padded", "packed"])

# Its tracer looks at every input's .grad, and is told so by torch.
quiet_compiler = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)


def batch_of(count: int, step: int, *, packed: bool) -> Batch:
    chosen = slots(count, 60, step=step)
    (piece,) = build_step(
        chosen, DOCUMENTS, rules(), batch_size=count, layout=Layout(packed)
    ).pieces
    return piece.batch


def trained(
    family: str, mode: str, attention: str | None, *, lora: bool = False, **shape: Any
) -> DiffusionModel:
    model: Any = tiny_model(family, **shape)
    if lora:
        model = adapted(model, family, dropout=0.3)
    set_recompute(model, mode)
    return DiffusionModel(model, PAD, attention).train()


def loss_and_gradient(module: DiffusionModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)  # of LoRA's dropout
    weighted = module(batch).weighted
    weighted.sum().backward()
    found = gradient(module)
    module.zero_grad()
    return weighted.detach(), found


# --- recomputation


@every_family
@every_layout
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_recomputation_changes_no_bit_of_loss_or_gradient(
    family: str, attention: str | None, lora: bool
) -> None:
    """Dropout of the adapters included: a layer that is made again draws the numbers it drew
    before.
    """
    batch = batch_of(12, 0, packed=attention is not None)
    loss, slopes = loss_and_gradient(trained(family, "none", attention, lora=lora), batch)
    assert slopes.norm() > 0
    for mode in ("selective", "full"):
        again, found = loss_and_gradient(trained(family, mode, attention, lora=lora), batch)
        assert torch.equal(again, loss)
        assert torch.equal(found, slopes)


def test_dropout_is_not_idle_in_that_test() -> None:
    module, batch = trained("bert", "full", None, lora=True), batch_of(12, 0, packed=False)
    first = loss_and_gradient(module, batch)[0]
    module.eval()
    assert not torch.equal(loss_and_gradient(module, batch)[0], first)


def kept_after_forward(family: str, mode: str, attention: str | None) -> int:
    """Bytes of activations alive when the backward pass begins."""
    module, batch = (
        trained(family, mode, attention, hidden_size=32),
        batch_of(40, 0, packed=attention is not None),
    )
    held = [*module.parameters(), *module.buffers()]
    gc.collect()
    with Tracker(vocabulary=-1, known={one.untyped_storage()._cdata for one in held}) as tracker:
        loss = module(batch).weighted.sum()
        kept = tracker.held["activations"]
        loss.backward()
    return kept


@every_family
@every_layout
def test_full_keeps_least_and_selective_lies_between(family: str, attention: str | None) -> None:
    none, selective, full = (kept_after_forward(family, mode, attention) for mode in MODES)
    assert full < 0.5 * none
    assert 1.2 * full < selective < 0.9 * none


def runs_of_a_layer(module: DiffusionModel, batch: Batch) -> int:
    """How often the last layer's first normalisation runs in a forward and a backward pass."""
    (*_, last) = (
        layer
        for layer in bare(module.model).modules()
        if isinstance(layer, GradientCheckpointingLayer)
    )
    norm = next(part for part in last.modules() if "Norm" in type(part).__name__)
    calls: list[int] = []
    hook = norm.register_forward_hook(lambda *_: calls.append(1))
    module(batch).weighted.sum().backward()
    hook.remove()
    return len(calls)


@every_family
def test_only_training_recomputes(family: str) -> None:
    batch = batch_of(4, 0, packed=False)
    once = runs_of_a_layer(trained(family, "none", None), batch)
    module = trained(family, "full", None)
    assert runs_of_a_layer(module, batch) == 2 * once
    assert runs_of_a_layer(module.eval(), batch) == once
    set_recompute(module.model, "none")
    assert runs_of_a_layer(module.train(), batch) == once


# --- compilation


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch's compiler from its beginning, and no trace of it in other tests."""
    import torch._dynamo as dynamo
    import torch._dynamo.config

    before = torch._dynamo.config.suppress_errors
    dynamo.reset()
    counters.clear()
    yield
    dynamo.reset()
    counters.clear()
    torch._dynamo.config.suppress_errors = before
    AttentionInterface.register(NAME, document_attention)


def compiled(module: DiffusionModel) -> DiffusionModel:
    names = list(module.state_dict())
    assert (
        compile_layers(module.model, may_fail=False, backend="aot_eager")
        == bare(module.model).config.num_hidden_layers
    )
    assert list(module.state_dict()) == names
    return module


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@quiet_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("family", "mode"), [("bert", "none"), ("llada", "full")])
def test_compiled_layers_give_the_same_numbers_and_are_compiled_once(
    family: str, mode: str
) -> None:
    """Three layers share their graphs, recomputed or not, and batches of new lengths need no new
    ones.
    """
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


@quiet_compiler
@pytest.mark.usefixtures("compiler")
def test_padded_masks_compile_each_layer_once() -> None:
    """ModernBERT's two masks reach compiled layers in one layout, however many layers and lengths
    there are.
    """
    counted = []
    for layers in (3, 9):
        fast = compiled(trained("modernbert", "none", None, num_hidden_layers=layers))
        for step in range(4):
            loss_and_gradient(fast, batch_of(6 + step, step, packed=False))
        counted.append(graphs())
        counters.clear()
        torch._dynamo.reset()
    assert 0 < counted[0] == counted[1] <= 8


def test_segments_hold_no_cache_that_a_compiler_guards() -> None:
    """torch 2.11 guards on what it finds in a compiled layer's arguments: a dict of masks was a new
    layer for every batch.
    """
    batch = batch_of(6, 0, packed=True)
    segments = Segments.of(batch, "dense")
    before = dict(vars(segments))
    first = segments.together(4)
    assert segments.together(4) is first, "made once"
    assert vars(segments) == before
    assert not [name for name, value in before.items() if isinstance(value, dict)]


@quiet_compiler
@pytest.mark.usefixtures("compiler")
def test_attention_is_called_and_not_compiled() -> None:
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
