"""Models without files for the benches: random weights, in the layers that loading leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from plugin.assembly.model import lora_settings
from plugin.assembly.precision import weight_dtype
from plugin.config.families import FAMILIES
from plugin.config.params import Params
from plugin.models.configuration import switch_off_dropout
from plugin.models.load import build_model, keep_exact, nf4
from plugin.models.lora import MaybeAdapted, add_adapter


def random_model(
    config: PretrainedConfig, params: Params, compute: torch.dtype, device: torch.device
) -> MaybeAdapted:
    """Return what make_model returns, with random weights: an 8B model is on no disk here."""
    switch_off_dropout(config)
    torch.manual_seed(params.seed)
    with torch.device(device):
        model: Any = build_model(config)
    model = model.to(weight_dtype(params, compute))
    family = FAMILIES[config.model_type]
    if params.load_in_4bit:
        quantise(model, nf4(family, compute))
    if not params.lora:
        return model
    return add_adapter(model, family, lora_settings(params), [])


def quantise(model: Any, settings: BitsAndBytesConfig) -> None:
    """Convert the linear layers to 4 bits in place, one at a time, as transformers does."""
    from bitsandbytes.nn import Params4bit

    plain = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
    while plain:
        name, layer = plain.popitem()
        small, weight = model.get_submodule(name), layer.weight.data
        if small is layer:
            continue
        small.weight = Params4bit(
            weight,
            quant_type=settings.bnb_4bit_quant_type,
            compress_statistics=settings.bnb_4bit_use_double_quant,
            quant_storage=settings.bnb_4bit_quant_storage,
            module=small,
        ).to(weight.device)
        small.bias = layer.bias
    keep_exact(model)
    model.is_loaded_in_4bit = True  # peft chooses its 4-bit layers by it
