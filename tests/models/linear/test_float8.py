"""Float8 training on a CPU with the real torchao: `make float8`. Its products are emulated, except
where a test says so.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compiled import compiler, quiet_compiler  # noqa: F401  # a fixture
from helpers.layers import DOCUMENTS, batch_of, trained
from helpers.tiny import VOCABULARY, adapted, rules, slots, tiny_config, word_tokenizer
from torch import nn

from plugin.assembly.memory import plan_memory
from plugin.batch import Batch
from plugin.config.families import FAMILIES
from plugin.config.parse import parse
from plugin.data.packing import Layout
from plugin.models.backbones import unwrapped
from plugin.models.diffusion import DiffusionModel, logits_of
from plugin.models.linear.float8 import Converted, check_torchao, convert_linear_layers
from plugin.models.load import load_model
from plugin.training.compile import compile_layers
from plugin.training.memory import Memory, Setting, documents_of
from plugin.training.step import build_step

pytestmark = pytest.mark.float8

# Largest distance of float8's losses from bfloat16's over 20 steps on one batch, as a share of the
# first loss: 0.0007 (BERT) to 0.0102 (Dream) was measured.
LOSS = 0.02
# Relative distance of float8's first gradient from bfloat16's: 0.007 (ModernBERT) to 0.12 (LLaDA) was
# measured, where bfloat16's is 0.005 to 0.009 from float32's.
GRADIENT = 0.2
Backend = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def torchao() -> None:
    """Fail instead of skip: who selects these tests has torchao."""
    check_torchao()


def module_of(
    family: str, *, lora: bool = False, attention: str | None = "loop", **shape: Any
) -> DiffusionModel:
    """Return a tiny model of widths that float8 takes, with weights as large as new models have."""
    size = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.05, **shape}
    module = trained(family, "none", attention, **size)
    if lora:
        module.model = adapted(module.model.bfloat16(), family, r=16).train()
    return module


def converted(module: DiffusionModel, family: str, *, emulate: bool = True) -> DiffusionModel:
    float8 = copy.deepcopy(module)
    convert_linear_layers(float8.model, FAMILIES[family], emulate=emulate)
    return float8


def loss_and_slopes(
    module: DiffusionModel, batch: Batch, divisor: float = 100
) -> tuple[float, torch.Tensor]:
    """Return a loss under bfloat16 autocast and the gradient of every trained weight, one vector."""
    module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(batch).weighted.sum() / divisor
    loss.backward()
    found = [weight.grad for weight in module.parameters() if weight.grad is not None]
    return loss.item(), torch.cat([one.flatten().double() for one in found])


def losses(module: DiffusionModel, steps: int) -> list[float]:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    found = []
    batch = batch_of(12, 0, packed=True)
    for _ in range(steps):
        found.append(loss_and_slopes(module, batch)[0])
        optimizer.step()
    return found


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "llada", "Dream"])
def test_losses_and_gradients_follow_bfloat16(family: str, lora: bool) -> None:
    plain = module_of(family, lora=lora)
    float8 = converted(plain, family)
    batch = batch_of(12, 0, packed=True)
    (_, wanted), (_, got) = loss_and_slopes(plain, batch), loss_and_slopes(float8, batch)
    assert 0 < distance(got, wanted) < GRADIENT
    expected, found = losses(plain, 20), losses(float8, 20)
    assert expected[-1] < 0.9 * expected[0], "it learned nothing"
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) / expected[0] < LOSS


@pytest.mark.parametrize("family", ["bert", "llada"])
def test_all_layers_below_the_head_are_converted(family: str) -> None:
    plain = module_of(family)
    float8 = copy.deepcopy(plain)
    before = {name: id(weight) for name, weight in float8.named_parameters()}
    linear = [
        name for name, one in unwrapped(float8.model).named_modules() if type(one) is nn.Linear
    ]
    head = [name for name in linear if name.startswith(FAMILIES[family].head)]
    assert convert_linear_layers(float8.model, FAMILIES[family]) == Converted(
        len(linear) - len(head), 0
    )
    left = [name for name, one in unwrapped(float8.model).named_modules() if type(one) is nn.Linear]
    assert left == head != []
    assert list(float8.state_dict()) == list(plain.state_dict())
    assert {name: id(weight) for name, weight in float8.named_parameters()} == before


def test_only_the_base_of_an_adapted_layer_is_converted() -> None:
    """The adapter's 16 rows would fit: they are left as they are, for they compute in float32."""
    module = module_of("llada", lora=True)
    layers = [one for one in module.modules() if type(one) is nn.Linear]
    assert convert_linear_layers(module.model, FAMILIES["llada"], emulate=True).layers == 14
    assert sum(type(one) is nn.Linear for one in layers) == 2 * 14 + 14 + 1, "matrices, bases, head"
    assert sum(type(one) is nn.Linear for one in module.modules()) == 2 * 14 + 1
    loss_and_slopes(module, batch_of(12, 0, packed=True))
    slopes = {name for name, weight in module.named_parameters() if weight.grad is not None}
    assert slopes == {name for name, _ in module.named_parameters() if ".lora_" in name}


def test_widths_float8_cannot_take_are_left_out() -> None:
    """24 is no multiple of 16: both matrices of the feed-forward stay, in each of two layers."""
    module = module_of("bert", intermediate_size=24)
    assert convert_linear_layers(module.model, FAMILIES["bert"], emulate=True) == Converted(8, 4)
    assert loss_and_slopes(module, batch_of(12, 0, packed=True))[1].isfinite().all()


def test_evaluation_computes_without_float8() -> None:
    plain = module_of("llada")
    float8 = converted(plain, "llada")
    batch = batch_of(12, 0, packed=True)
    assert loss_and_slopes(plain, batch)[0] != loss_and_slopes(float8, batch)[0]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = [module.eval()(batch).weighted for module in (plain, float8)]
    assert torch.equal(*found)


def test_conversion_keeps_evaluation_mode() -> None:
    """A new layer is in training mode; a model that is only evaluated must not compute in float8."""
    module = module_of("bert").eval()
    convert_linear_layers(module.model, FAMILIES["bert"])
    assert not [one for one in module.modules() if one.training]


def test_a_saved_model_is_a_plain_one(tmp_path: Path) -> None:
    from plugin.models.publish import write_model
    from plugin.run.facts import ModelFacts

    module = converted(module_of("bert"), "bert")
    losses(module, 2)
    tokenizer = word_tokenizer([f"w{number}" for number in range(VOCABULARY - 5)])
    write_model(tmp_path, module.model, tokenizer, ModelFacts())
    loaded = load_model(str(tmp_path))
    assert not [one for one in loaded.modules() if "Float8" in type(one).__name__]
    ids = torch.arange(5, 25)[None]
    model = unwrapped(module.model)
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits_of(model, ids), logits_of(loaded, ids))


def test_the_split_of_a_step_matters_as_in_bfloat16() -> None:
    """Both differ by 0.002. Scales of exact largest values made a difference of 0.10."""
    plain = module_of("llada")
    losses(plain, 20)
    for module in (plain, converted(plain, "llada")):
        slopes = []
        for size in (12, 3):
            step = build_step(
                slots(12, 60), DOCUMENTS, rules(), batch_size=size, layout=Layout(True)
            )
            total = torch.zeros(())
            for one in step.micro_batches:
                total = total + loss_and_slopes(module, one.batch)[1]
            slopes.append(total)
        assert 0 < distance(slopes[1], slopes[0]) < 0.01


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, torch.Size]]:
    """Return the shapes of the float8 products that torch will compute."""
    seen: list[tuple[torch.Size, torch.Size]] = []
    real = torch._scaled_mm

    def spy(left: torch.Tensor, right: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((left.shape, right.shape))
        return real(left, right, **options)

    monkeypatch.setattr(torch, "_scaled_mm", spy)
    return seen


def test_real_products_take_any_number_of_tokens(
    products: list[tuple[torch.Size, torch.Size]],
) -> None:
    """A GPU takes sums over multiples of 16 alone, and columns in multiples of 16; a CPU takes any."""
    plain = module_of("bert", num_hidden_layers=1)
    batch = next(
        one for step in range(9) if (one := batch_of(2, step, packed=True)).ids.shape[0] % 16
    )
    real = loss_and_slopes(converted(plain, "bert", emulate=False), batch)
    assert len(products) == 3 * 6
    assert not [shapes for shapes in products if shapes[0][1] % 16 or shapes[1][1] % 16]
    emulated = loss_and_slopes(converted(plain, "bert"), batch)
    assert abs(real[0] / emulated[0] - 1) < 1e-3
    assert distance(real[1], emulated[1]) < 0.01


def noting(graphs: list[Counter[str]]) -> Backend:
    """Return a backend that runs graphs as they are and notes the operations of backward ones."""
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    def forward(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backward(graph: Any, inputs: Any) -> Any:
        graphs.append(Counter(str(node.target) for node in graph.graph.nodes))
        return forward(graph, inputs)

    return aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        partition_fn=min_cut_rematerialization_partition,
    )


@quiet_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_compiled_layers_are_equal_and_share_graphs(lora: bool) -> None:
    """The product for a frozen weight's gradient, which torchao's layer has, is compiled away.

    Padded, so that attention is part of the layer's graph, as it is with varlen.
    """
    plain = module_of("llada", lora=lora, attention=None, num_hidden_layers=3)
    plain = converted(plain, "llada")
    fast, graphs = copy.deepcopy(plain), list[Counter[str]]()
    assert compile_layers(fast.model, None, may_fail=False, backend=noting(graphs)) == 3  # pyright: ignore[reportArgumentType]
    counted = []
    for step in range(3):
        batch = batch_of(6 + step, step, packed=False)
        (loss, wanted), (got, found) = loss_and_slopes(plain, batch), loss_and_slopes(fast, batch)
        assert got == pytest.approx(loss, rel=1e-6)
        assert distance(found, wanted) < 1e-6
        counted.append(len(graphs))
    assert counted == [1, 1, 1]
    # Of each of 7 layers in full: gradients of input and weight; of an adapted one: of its input,
    # and four of its two matrices.
    most = max(graph["aten.mm.default"] + graph["aten.addmm.default"] for graph in graphs)
    assert most == (7 * 5 if lora else 7 * 2)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_memory_is_estimated_with_the_float8_products(lora: bool) -> None:
    """Float8 keeps no copy of a weight. An adapted layer keeps its input too, unless compiled: 16 %
    more activations here.
    """
    config = tiny_config(
        "llada", hidden_size=256, intermediate_size=768, max_position_embeddings=512
    )
    setting = Setting(torch.device("cpu"), torch.bfloat16, "loop", "adamw", False)

    def needed(float8: bool) -> Memory:
        job = {"dataset_name": "d", "model_name": "m", "training_method": "llada"}
        params = parse({**job, "lora": lora, "float8": float8, "recompute": "none"}).params
        return plan_memory(
            params, config, documents_of(2050, 410), setting, 10**10, compiles=False
        ).memory

    plain, float8 = needed(False), needed(True)
    same = ("weights", "gradients", "optimizer")
    assert [getattr(float8, kind) for kind in same] == [getattr(plain, kind) for kind in same]
    assert float8.activations != plain.activations
    assert float8.activations == pytest.approx(plain.activations, rel=0.2)
