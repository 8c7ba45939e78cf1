"""The lean forward pass of adapters against peft's own: output and every gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tiny import FAMILIES, PAD, adapted, random_documents, rules, slots, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plugin.data.packing import Layout
from plugin.models.diffusion import DiffusionModel
from plugin.models.linear.lean_lora import use_lean_forward
from plugin.training.step import build_step

DOCUMENTS = random_documents(12, longest=26)
SCALE = 2.5  # not a power of two: a scale applied twice or to the wrong factor shows


class Layers(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=bias), nn.Linear(40, 16, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(bias: bool, dropout: float = 0.0) -> tuple[Any, Any]:
    """Return two equal adapted models: peft's and the lean one."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=10, lora_dropout=dropout, target_modules=["first", "second"]
    )
    theirs: Any = get_peft_model(Layers(bias), config)
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    ours = copy.deepcopy(theirs)
    use_lean_forward(ours)
    return theirs, ours


def played(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return output, gradient of the input and of every adapter weight."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out.float() ** 2).sum().backward()
    assert x.grad is not None
    found = {"out": out, "x": x.grad}
    return found | {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24)])
def test_lean_adapter_equals_peft(bias: bool, shape: tuple[int, ...]) -> None:
    theirs, ours = pair(bias)
    x = torch.randn(shape)
    wanted, got = played(theirs, x), played(ours, x)
    assert got.keys() == wanted.keys()
    assert len(got) == 6, "output, input, and both sides of two adapters"
    for name, value in wanted.items():
        error = (got[name] - value).norm() / value.norm()
        assert error < 1e-6, name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_lean_adapter_in_half_precision_is_no_farther(bias: bool, base: torch.dtype) -> None:
    """Under autocast both round to bfloat16; the lean result is as near to float64 as peft's."""
    theirs, ours = pair(bias)
    x = torch.randn(512, 24)
    for model in (theirs, ours):
        for name, weight in model.named_parameters():
            if "lora" not in name:
                weight.data = weight.data.to(torch.bfloat16).to(base)
    exact = played(copy.deepcopy(theirs).double(), x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted, got = played(theirs, x), played(ours, x)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        far, near = ((found[name] - exact[name]).norm() for found in (wanted, got))
        assert near <= 1.2 * far, name
        assert near <= 0.02 * exact[name].norm(), name


ROWS, RANK = 7, 4


class Passes(TorchDispatchMode):
    """Counts products, and sums and scalings of more than `ROWS` x `RANK` numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.wide = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.name()
        self.products += name in ("aten::mm", "aten::addmm")
        self.wide += name.startswith(("aten::mul", "aten::add.")) and out.numel() > ROWS * RANK
        return out


def test_lean_adapter_makes_no_pass_over_activations() -> None:
    """Of each of two layers: its product, its input's gradient, and twice three of its adapter."""
    found = []
    for model in pair(bias=False):
        x = torch.randn(ROWS, 24, requires_grad=True)
        with Passes() as passes:
            out = model(x)
            out.backward(torch.ones_like(out))
        found.append((passes.products, passes.wide))
    # peft scales and adds, forward and backward
    assert found == [(2 * 8, 2 * 4), (2 * 8, 0)]


def test_lean_adapter_with_dropout_is_left_to_peft() -> None:
    theirs, ours = pair(bias=False, dropout=0.5)
    x, found = torch.randn(7, 24), []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(1)
        found.append(played(model, x))
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


def test_lean_adapter_merges_and_switches_off_as_peft() -> None:
    theirs, ours = pair(bias=True)
    x = torch.randn(7, 24)
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    merged = ours.merge_and_unload()
    torch.testing.assert_close(merged(x), theirs(x))
    assert type(merged.first) is nn.Linear


@pytest.mark.parametrize("family", FAMILIES)
def test_lean_adapter_trains_each_family(family: str) -> None:
    """The whole model with our forward pass and with peft's: one loss, one gradient."""
    (micro_batch,) = build_step(
        slots(12, 12), DOCUMENTS, rules(), batch_size=12, layout=Layout(True)
    ).micro_batches
    found = []
    for lean in (True, False):
        model: Any = adapted(tiny_model(family), family)
        kinds = {type(module).__name__ for module in model.modules()}
        assert "LeanLinear" in kinds
        assert "Linear" not in {name for name in kinds if name.startswith("Lora")}
        if not lean:
            for module in model.modules():
                if type(module).__name__ == "LeanLinear":
                    module.__class__ = type(module).__mro__[1]
        sums = DiffusionModel(model.train(), PAD, "loop")(micro_batch.batch)
        sums.weighted.sum().backward()
        slopes = [weight.grad for weight in model.parameters() if weight.requires_grad]
        found.append((sums.weighted.detach(), torch.cat([slope.flatten() for slope in slopes])))
    (loss, slope), (wanted, expected) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    assert (slope - expected).norm() < 1e-6 * expected.norm()
