"""Float8 products of linear layers in training steps, by torchao.

Weights keep their names and dtype, and no scale is stored: input, weight and output gradient of each
product are cast when it is computed. Evaluation, samples and published models compute as without
float8.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import JobError, Problem
from ...config.families import Family
from ..backbones import unwrapped
from ..lora import in_head

TORCHAO = "torchao==0.18.0"  # as in requirements-float8.txt
WIDTH = 16  # float8 products take multiples of it only


@dataclass(frozen=True)
class Converted:
    """Numbers of linear layers below the output head, adapter matrices apart."""

    layers: int  # that train in float8
    left_out: int  # whose widths are no multiples of WIDTH


def check_torchao() -> None:
    """Import torchao. Raises JobError (exit 2) naming float8 if it is missing or of another version."""
    try:
        _torchao()
    except (ImportError, AttributeError) as error:
        fix = f"Run pip install {TORCHAO}, or set float8 false."
        raise JobError(Problem("float8", "torchao installed", str(error), fix)) from error


def convert_linear_layers(model: nn.Module, family: Family, *, emulate: bool = False) -> Converted:
    """Convert the linear layers below the output head to float8 training, in place.

    An adapter's matrices stay as they are. `emulate` multiplies the rounded numbers in float32: a
    CPU's own float8 products give the same loss, about 40 times slower.
    """
    convert, config, _ = _torchao()
    plain = unwrapped(model)
    linear = {
        name: module
        for name, module in plain.named_modules()
        if type(module) is nn.Linear and not in_head(name, family) and not _of_adapter(name)
    }
    chosen = {
        name: module
        for name, module in linear.items()
        if module.in_features % WIDTH == module.out_features % WIDTH == 0
    }
    convert(
        plain,
        module_filter_fn=lambda module, name: name in chosen,
        config=replace(
            config.from_recipe_name("tensorwise"),
            # Scales are powers of two, so that a tensor's largest value hardly changes the rounding
            # of its other values: a step's gradient depends on its split into micro-batches by
            # 0.002 as in bfloat16, by 0.1 with exact scales (tiny LLaDA).
            round_scales_to_power_of_2=True,
            # The gradient of a weight sums over tokens, whose number is no multiple of WIDTH.
            pad_inner_dim=True,
            emulate=emulate,
        ),
    )
    for name, module in chosen.items():
        layer: Any = plain.get_submodule(name)
        layer.__class__ = _float8_in_training()
        layer.train(module.training)
    return Converted(len(chosen), len(linear) - len(chosen))


def _torchao() -> tuple[Any, Any, Any]:
    """Return torchao's conversion, its configuration and its layer.

    Imported by name, because type checkers run without torchao.
    """
    float8: Any = importlib.import_module("torchao.float8")
    layer: Any = importlib.import_module("torchao.float8.float8_linear")
    return float8.convert_to_float8_training, float8.Float8LinearConfig, layer.Float8Linear


def _of_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


@cache
def _float8_in_training() -> type[nn.Linear]:
    """Return torchao's layer with float8 in training mode alone.

    It is one class for all layers, because compiled layers share their code by class.
    """
    _, _, base = _torchao()

    class Float8InTraining(base):
        def forward(self, input: Tensor) -> Tensor:
            if not self.training:
                return nn.Linear.forward(self, input)
            kind = input.device.type  # torchao's layer asks for a GPU's autocast alone
            if torch.is_autocast_enabled(kind):
                input = input.to(torch.get_autocast_dtype(kind))
            return super().forward(input)

    return Float8InTraining
