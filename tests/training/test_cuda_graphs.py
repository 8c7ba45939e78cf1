"""The encoder at padded sizes, and captures that behave as CUDA graphs do.

A CPU has no graphs. `Replayed` takes their place: it has torch's contract (fixed inputs, outputs
and gradients that every replay overwrites), and computes anew. What a GPU adds is the launch alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import varlen_on_cpu
from helpers.layers import batch_of, loss_and_gradient, trained
from helpers.tiny import FAMILIES, PAD, assert_same_vector, random_documents, rules, slots
from torch import Tensor

from plugin.batch import Batch
from plugin.data.packing import Layout
from plugin.models.diffusion import DiffusionModel
from plugin.training.cuda_graphs import (
    STEP,
    Capture,
    Encode,
    EncoderGraphs,
    Inputs,
    SizedEncoder,
    Sizes,
    capture_encoder,
    choose_sizes,
    difference,
    padded_to,
)
from plugin.training.step import Step, build_step

every_family = pytest.mark.parametrize("family", FAMILIES)
SIZES = Sizes((128, 192, 320), 14)


@pytest.fixture(autouse=True)
def _kernels() -> None:
    varlen_on_cpu.register()


def uncaptured(encoder: SizedEncoder, sample: Inputs) -> Encode:
    return encoder


class Replayed:
    """An encoder with the contract of torch.cuda.make_graphed_callables."""

    def __init__(self, encoder: SizedEncoder, sample: Inputs):
        self.inputs, self.weights = sample, tuple(encoder.parameters())
        used = [weight for weight in self.weights if weight.requires_grad]
        with torch.enable_grad():
            self.outputs = encoder(*sample).detach().clone()
        self.slopes: list[Tensor | None] = [None] * len(self.weights)
        held = self

        class Graph(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *values: Tensor) -> Tensor:
                for fixed, value in zip(held.inputs, values[: len(held.inputs)], strict=True):
                    assert fixed.shape == value.shape, "a graph has fixed sizes"
                    fixed.copy_(value)
                with torch.enable_grad():
                    held.computed = encoder(*held.inputs)
                held.outputs.copy_(held.computed.detach())
                return held.outputs.detach()

            @staticmethod
            def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
                found = torch.autograd.grad(held.computed, used, slope, allow_unused=True)
                left = iter(found)
                for place, weight in enumerate(held.weights):
                    gradient = next(left) if weight.requires_grad else None
                    if gradient is None:
                        continue
                    if held.slopes[place] is None:
                        held.slopes[place] = torch.empty_like(gradient)
                    held.slopes[place].copy_(gradient)  # pyright: ignore[reportOptionalMemberAccess]
                fixed = (one if one is None else one.detach() for one in held.slopes)
                return (*([None] * len(held.inputs)), *fixed)

        self.graph: Any = Graph

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.graph.apply(*inputs, *self.weights)


def captured(family: str, capture: Capture, **shape: Any) -> DiffusionModel:
    module = trained(family, "none", "varlen", **shape)
    module.captured = EncoderGraphs(module, SIZES, torch.float32, capture)
    return module


def batches(count: int) -> list[Batch]:
    return [batch_of(5 + step, step, packed=True) for step in range(count)]


@every_family
@pytest.mark.parametrize("capture", [uncaptured, Replayed])
def test_padded_sizes_give_equal_losses_and_gradients(family: str, capture: Capture) -> None:
    plain, padded = trained(family, "none", "varlen"), captured(family, capture)
    sizes = set()
    for batch in batches(6):
        sizes.add(SIZES.fitting(batch))
        (wanted, slopes), (loss, found) = (
            loss_and_gradient(module, batch) for module in (plain, padded)
        )
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
        assert_same_vector(found, slopes)
    assert len(sizes) > 1, "several graphs took part"
    assert None not in sizes


@pytest.mark.parametrize("capture", [uncaptured, Replayed])
def test_padded_sizes_with_adapters_give_equal_gradients(capture: Capture) -> None:
    plain = trained("llada", "none", "varlen", dropout=0.0)
    padded = captured("llada", capture, dropout=0.0)
    for batch in batches(3):
        (_, slopes), (_, found) = (loss_and_gradient(module, batch) for module in (plain, padded))
        assert_same_vector(found, slopes)


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_padded_sizes_of_a_causal_model_give_equal_gradients(family: str) -> None:
    loop = trained(family, "none", "loop", causal=True)
    padded = captured(family, Replayed, causal=True)
    for batch in batches(3):
        (wanted, slopes), (loss, found) = (
            loss_and_gradient(module, batch) for module in (loop, padded)
        )
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        assert_same_vector(found, slopes)


def test_padded_sizes_add_up_micro_batches_of_one_step() -> None:
    """Autograd leaves a graph's gradients at fixed addresses, which the next replay overwrites."""
    plain, padded = trained("bert", "none", "varlen"), captured("bert", Replayed)
    found, both = [], (batch_of(6, 0, packed=True), batch_of(6, 1, packed=True))
    assert len({SIZES.fitting(batch) for batch in both}) == 1, "one graph for two batches"
    for module in (plain, padded):
        for batch in both:
            module(batch).weighted.sum().backward()
        found.append(
            torch.cat(
                [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
            )
        )
    assert_same_vector(found[1], found[0])


def test_padded_sizes_are_left_to_training_steps() -> None:
    calls: list[int] = []

    def counting(encoder: SizedEncoder, sample: Inputs) -> Encode:
        def encode(*inputs: Tensor) -> Tensor:
            calls.append(encoder.tokens)
            return encoder(*inputs)

        return encode

    module, batch = captured("bert", counting), batch_of(5, 0, packed=True)
    module(batch)
    assert len(calls) == 1
    with torch.no_grad():
        module(batch)
    module.eval()
    module(batch)
    module.train()
    module(batch_of(40, 0, packed=True))  # more tokens and documents than any size has
    assert len(calls) == 1


def test_padded_inputs_end_in_a_filler_and_empty_documents() -> None:
    batch = batch_of(5, 0, packed=True)
    N = batch.ids.shape[0]
    ids, position, ends = padded_to(batch, 192, 9, PAD)
    assert (ids.shape, position.shape, ends.shape) == ((192,), (192,), (10,))
    assert ids[:N].tolist() == batch.ids.tolist()
    assert set(ids[N:].tolist()) == {PAD}
    assert set(position[N:].tolist()) == {0}
    assert ends.tolist() == [*batch.cu_seqlens.tolist(), 192, 192, 192, 192]
    assert ends.dtype == torch.int32


def test_chosen_sizes_have_the_least_padding() -> None:
    """Compared with all choices of up to three sizes."""
    tokens = [40, 70, 100, 130, 300, 310, 320, 900, 1000, 70, 70]
    rounded = [-(-number // STEP) * STEP for number in tokens]

    def cost(sizes: Sequence[int]) -> int:
        return sum(min(size for size in sizes if size >= number) for number in rounded)

    ends = sorted(set(rounded))
    for most in (1, 2, 3):
        best = min(
            cost((*some, ends[-1])) for n in range(most) for some in combinations(ends[:-1], n)
        )
        sizes = choose_sizes(tokens, 7, most)
        assert len(sizes.tokens) <= most
        assert cost(sizes.tokens) == best
        assert sizes.tokens[-1] == 1024
        assert sizes.documents == 8


def test_one_length_needs_one_size() -> None:
    assert choose_sizes([512] * 9, 1, 6).tokens == (512,)


def steps_of(documents: int) -> Callable[[int], Step]:
    stored = random_documents(60, longest=26)

    def make(number: int) -> Step:
        chosen = slots(documents + number % 5, 60, step=number)
        return build_step(chosen, stored, rules(), batch_size=16, layout=Layout(True, 400))

    return make


def capturing(
    capture: Capture, *, documents: int = 5, room: float = 1e9
) -> tuple[DiffusionModel, int, list[str]]:
    module, said = trained("bert", "none", "varlen"), []
    held = capture_encoder(
        module, steps_of(documents), 40, torch.float32, room, said.append, lambda: capture
    )
    return module, held, said


def test_capture_chooses_sizes_from_the_steps() -> None:
    module, held, said = capturing(Replayed)
    assert isinstance(module.captured, EncoderGraphs)
    gradients = sum(weight.numel() * 4 for weight in module.parameters())
    (line,) = said
    sizes = line.split("sizes of ")[1].split(" tokens")[0].split(", ")
    assert held == len(sizes) * gradients
    assert "of the tokens is filler" in line
    wanted = trained("bert", "none", "varlen")
    batch = steps_of(5)(3).micro_batches[0].batch
    torch.testing.assert_close(module(batch).weighted, wanted(batch).weighted, rtol=1e-5, atol=1e-5)


def out_of_memory(encoder: SizedEncoder, sample: Inputs) -> Encode:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def stale(encoder: SizedEncoder, sample: Inputs) -> Encode:
    """Keep the document borders of the capture, as a graph that read them on the CPU would."""
    ends = sample[2].clone()
    return lambda ids, position, _: encoder(ids, position, ends)


@pytest.mark.parametrize(
    ("capture", "more", "reason"),
    [
        (out_of_memory, {}, "could not be captured: CUDA out of memory"),
        (stale, {}, "gradients differ by"),
        (Replayed, {"room": 1000.0}, "are free"),
        (Replayed, {"documents": 40}, "several micro-batches"),
    ],
    ids=["memory", "stale", "room", "split"],
)
def test_impossible_capture_says_why_and_runs_on(
    capture: Capture, more: dict[str, Any], reason: str
) -> None:
    module, held, (line,) = capturing(capture, **more)
    assert module.captured is None
    assert held == 0
    assert line.startswith("cuda_graphs: off; ")
    assert reason in line


def test_difference_of_a_true_capture_is_small() -> None:
    module = trained("modernbert", "none", "varlen")
    graphs = EncoderGraphs(module, SIZES, torch.float32, Replayed)
    assert difference(module, graphs, batches(2)) < 1e-5


def test_installed_torch_captures_with_our_arguments() -> None:
    known = inspect.signature(torch.cuda.make_graphed_callables).parameters
    assert {"allow_unused_input", "pool"} <= set(known)
