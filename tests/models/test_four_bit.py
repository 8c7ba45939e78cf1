"""QLoRA's base: the layers that are 4-bit, their accuracy, and sampling that leaves them unchanged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from helpers.published_checkpoints import write_checkpoint
from torch import nn

from plugin.base.errors import JobError
from plugin.config.families import FAMILIES as KNOWN
from plugin.config.sampler import SamplerSettings
from plugin.models.diffusion import Predictor
from plugin.models.load import load_model
from plugin.sampling.generate import generate
from plugin.sampling.request import Request, Vocabulary

METHODS = ("classic", "bert", "llada", "dream")
TEXTS = ["how are you", "fine, thanks"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {method: write_checkpoint(folder / method, method, TEXTS) for method in METHODS}


def four_bit_layers(model: nn.Module) -> dict[str, Linear4bit]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_four_bit_quantises_linear_layers_only(
    method: str, dtype: torch.dtype, bases: dict[str, Path]
) -> None:
    plain, model = (
        load_model(str(bases[method]), dtype=dtype),
        load_model(str(bases[method]), dtype=dtype, four_bit=True),
    )
    layers = four_bit_layers(model)
    assert len(layers) == {"classic": 12, "bert": 8, "llada": 14, "dream": 14}[method]
    assert not any(name.startswith(KNOWN[model.config.model_type].head) for name in layers)
    for layer in layers.values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, layer.compute_dtype) == ("nf4", True, dtype)
        assert layer.weight.numel() == state.shape.numel() // 2, "two weights a byte"
    expected = dict(plain.named_parameters())
    others = {
        name: weight
        for name, weight in model.named_parameters()
        if name.removesuffix(".weight") not in layers
    }
    assert len(others) + len(layers) == len(expected)
    for name, weight in others.items():
        assert weight.dtype == dtype
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_four_bit_weights_are_close_to_the_originals(method: str, bases: dict[str, Path]) -> None:
    plain = dict(load_model(str(bases[method])).named_parameters())
    for name, layer in four_bit_layers(load_model(str(bases[method]), four_bit=True)).items():
        near, exact = (
            dequantize_4bit(layer.weight.data, layer.weight.quant_state),
            plain[f"{name}.weight"],
        )
        error = (near.float() - exact).norm() / exact.norm()
        assert 0.01 < error < 0.15  # NF4 of normal weights loses about a tenth


def snapshot(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return logits with gradients on, as in training, and the bytes of the 4-bit weights."""
    logits = model(input_ids=ids).logits.detach().clone()
    return logits, [layer.weight.data.clone() for layer in four_bit_layers(model).values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["bert", "llada", "dream"])
def test_sampling_leaves_four_bit_weights_unchanged(
    method: str, dtype: torch.dtype, bases: dict[str, Path]
) -> None:
    """Some CPUs with bfloat16 make bitsandbytes repack weights in the first no-grad forward."""
    model = load_model(str(bases[method]), dtype=dtype, four_bit=True)
    ids = torch.arange(20)[None]
    logits, stored = snapshot(model, ids)
    prompt = np.arange(5, 12, dtype=np.int32)
    generate(
        Predictor(model),
        [Request(ids=prompt)],
        Vocabulary(4, (3,), 0),
        SamplerSettings(max_new_tokens=8, block_length=8, steps=8),
    )
    with torch.inference_mode():
        model(input_ids=ids)
    again, kept = snapshot(model, ids)
    assert torch.equal(again, logits)
    assert len(stored) == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(stored, kept, strict=True))


def test_four_bit_without_bitsandbytes_is_refused(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(JobError) as caught:
        load_model(str(bases["dream"]), four_bit=True)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.expected) == (
        2,
        "load_in_4bit",
        "bitsandbytes installed",
    )
    assert "load_in_4bit false" in problem.fix
    assert load_model(str(bases["dream"])).config.model_type == "Dream"
