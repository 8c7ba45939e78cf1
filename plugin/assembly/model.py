"""Construction of the model to be trained, from a run's parameters."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..base.errors import renamed_field
from ..config.families import FAMILIES
from ..config.params import Params
from ..models.configuration import (
    check_family_method,
    extend_context,
    load_config,
    new_config,
    set_causal,
    switch_off_dropout,
)
from ..models.linear.float8 import convert_linear_layers
from ..models.load import build_model, check_builds, fit_config, load_model
from ..models.lora import LoraSettings, MaybeAdapted, add_adapter, four_bit_saves, restore_adapter
from ..models.tiling import check_tiling, tile_into
from ..models.tokenizer import check_pair, new_tokens
from .precision import weight_dtype


def named_config(params: Params) -> PretrainedConfig:
    """Return the configuration that a job names, with the context that it asks for.

    Raises JobError (exit 2 or 4).
    """
    if params.model_config_file:
        config = new_config(params.model_config_file)
    else:
        with _named_as_given(params):
            config = load_config(params.base)
    if _extends(params):
        extend_context(config, params.rope_theta, params.max_length)
    return config


def _extends(params: Params) -> bool:
    return bool(params.rope_theta or params.start_from)


def _named_as_given(params: Params) -> AbstractContextManager[None]:
    """Name start_from in problems of a model folder that it has named."""
    return renamed_field("model_name", "start_from" if params.start_from else "model_name")


def base_config(params: Params, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the configuration of the model to be trained, checked against method and tokenizer.

    Raises JobError (exit 2 or 4).
    """
    config = named_config(params)
    set_causal(config, params.training_method)
    if params.model_config_file:
        fit_config(config, tokenizer)
        if params.init_from:
            check_tiling(config, _smaller_config(params))
    else:
        check_builds(config, "model_name")
    check_family_method(config, params.training_method)
    check_pair(config, tokenizer, params.max_length)
    return config


def _smaller_config(params: Params) -> PretrainedConfig:
    with renamed_field("model_name", "init_from"):
        return load_config(params.init_from)


def make_model(
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    compute: torch.dtype,
    *,
    checkpoint: Path | None = None,
) -> MaybeAdapted:
    """Build the model to be trained: the base, or a new model seeded by the run's seed or tiled
    from a smaller one, with an adapter if one is asked for.

    A resumed run loads the weights of its own `checkpoint`, a run that starts from a checkpoint of
    another run those of that one.

    Full fine-tuning keeps float32 master weights, except under adamw_8bit with bfloat16 compute:
    then the weights are bfloat16 and the optimizer rounds stochastically. A frozen base is kept in
    the compute dtype. Raises JobError (exit 2 or 4).
    """
    config = base_config(params, tokenizer)
    attention = (
        params.attn_implementation if params.attn_implementation in ("eager", "sdpa") else None
    )
    dtype = weight_dtype(params, compute)
    torch.manual_seed(params.seed)
    if checkpoint and not params.lora:  # a complete model folder
        return load_model(str(checkpoint), dtype=dtype, attn_implementation=attention)
    if params.model_config_file:
        model = build_model(copy.deepcopy(config), attention)
        if params.init_from:
            with renamed_field("model_name", "init_from"):
                tile_into(model, load_model(params.init_from))
    else:
        four_bit = params.load_in_4bit
        with _named_as_given(params):
            model = load_model(
                params.base,
                dtype=dtype,
                attn_implementation=attention,
                four_bit=four_bit,
                config=copy.deepcopy(config) if _extends(params) else None,
            )
    set_causal(model.config, params.training_method)
    added = new_tokens(config, tokenizer)
    if added:
        model.resize_token_embeddings(len(tokenizer))
    if not params.lora:
        return model
    adapted = add_adapter(model, FAMILIES[config.model_type], lora_settings(params), added)
    if checkpoint:
        restore_adapter(adapted, checkpoint)
    return adapted


def model_shape(
    params: Params, config: PretrainedConfig, compute: torch.dtype
) -> tuple[nn.Module, int]:
    """Return make_model's result on the meta device, and the bytes by which its real 4-bit layers
    are smaller than the plain ones here.
    """
    family, config = FAMILIES[config.model_type], copy.deepcopy(config)
    switch_off_dropout(config)
    with torch.device("meta"):
        plain: Any = build_model(config)
        model = plain.to(weight_dtype(params, compute))
        saves = four_bit_saves(model, family) if params.load_in_4bit else 0
        if params.lora:
            model = add_adapter(model, family, lora_settings(params), [])
        if params.float8:
            convert_linear_layers(model, family)
        return model, saves


def lora_settings(params: Params) -> LoraSettings:
    return LoraSettings(params.lora_r, params.lora_alpha, params.lora_dropout, params.lora_targets)
