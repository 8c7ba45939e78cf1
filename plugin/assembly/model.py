"""Construction of the model to be trained, from a run's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..base.errors import renamed_field
from ..config.families import DECODERS, FAMILIES
from ..config.methods import METHODS
from ..config.params import Params
from ..config.rules.blocks import schedule_pairs
from ..models.backbones import forbidden_output
from ..models.configuration import (
    attention_pattern,
    block_facts,
    check_family_method,
    extend_context,
    load_config,
    new_config,
    set_attention,
    switch_off_dropout,
)
from ..models.decoders.mask_token import settle_row
from ..models.linear.float8 import convert_linear_layers
from ..models.load import (
    build_model,
    check_builds,
    fit_config,
    fit_to_tokenizer,
    load_model,
    name_mask,
)
from ..models.lora import LoraSettings, MaybeAdapted, add_adapter, four_bit_saves, restore_adapter
from ..models.tiling import check_tiling, tile_into
from ..models.tokenizer import check_pair, new_tokens
from ..run.facts import BlockFacts
from .choice import Choice
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
    set_attention(config, params.training_method, block_attention(params, config))
    if params.model_config_file:
        fit_config(config, tokenizer)
        if params.init_from:
            check_tiling(config, _smaller_config(params))
    else:
        check_builds(config, "model_name")
    check_family_method(config, params.training_method)
    check_pair(config, tokenizer, params.max_length)
    name_mask(config, tokenizer)
    return config


# Parameters of a model up to which its blocks have SMALL_BLOCK tokens, else LARGE_BLOCK: Efficient-DLM
# (arXiv 2512.14067), table 3 and figure 3.
SMALL_MODEL, SMALL_BLOCK, LARGE_BLOCK = 2e9, 16, 32


def with_block_size(params: Params, log: Callable[[str], None]) -> Params:
    """Return the parameters with the block size that the run has; `log` learns one that is chosen.

    Raises JobError (exit 2 or 4) as named_config does.
    """
    if not METHODS[params.training_method].blocks or isinstance(params.block_size, int):
        return params
    size, why = chosen_size(params, named_config(params))
    log(f"block_size: {size}, {why}")
    return params.model_copy(update={"block_size": size})


def block_attention(params: Params, config: PretrainedConfig) -> BlockFacts | None:
    """Return the blocks in which a job trains the model of `config`; None for other methods."""
    if not METHODS[params.training_method].blocks:
        return None
    size = params.block_size
    if not isinstance(size, int):
        size = chosen_size(params, config).value
    return BlockFacts(size=size, clean_context=params.clean_context, shift=params.block_shift)


def chosen_size(params: Params, config: PretrainedConfig) -> Choice[int]:
    """Return the block size of block_size auto, at most max_length: the last of a schedule, the
    model's own, or one for its number of parameters.
    """
    if sizes := schedule_pairs(params.block_schedule):
        return Choice(sizes[-1][1], "the last of block_schedule")
    if own := block_facts(config) if config.model_type in DECODERS else None:
        return Choice(min(own.size, params.max_length), "the model's own")
    with torch.device("meta"):
        plain = build_model(copy.deepcopy(config))
    small = sum(weight.numel() for weight in plain.parameters()) <= SMALL_MODEL
    size = min(SMALL_BLOCK if small else LARGE_BLOCK, params.max_length)
    most = f"{'up to' if small else 'more than'} {SMALL_MODEL / 1e9:g} billion parameters"
    return Choice(size, f"for a model of {most}")


def _smaller_config(params: Params) -> PretrainedConfig:
    with renamed_field("model_name", "init_from"):
        return load_config(params.init_from)


def make_model(
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    compute: torch.dtype,
    *,
    checkpoint: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
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
    family = FAMILIES[config.model_type]
    attention = (
        params.attn_implementation if params.attn_implementation in ("eager", "sdpa") else None
    )
    dtype = weight_dtype(params, compute)
    torch.manual_seed(params.seed)
    block = block_facts(config)
    if checkpoint and not params.lora:  # a complete model folder
        whole = load_model(str(checkpoint), dtype=dtype, attn_implementation=attention)
        set_attention(whole.config, params.training_method, block)
        return whole
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
    set_attention(model.config, params.training_method, block)
    trained = set(new_tokens(config, tokenizer))
    fit_to_tokenizer(model, tokenizer)
    if family.decoder and attention_pattern(model.config) != "causal":
        if not _was_mask(params) and (line := settle_row(model, config.mask_token_id)):
            log(line)
        trained.add(config.mask_token_id)
    if not params.lora:
        return model
    adapted = add_adapter(model, family, lora_settings(params), sorted(trained))
    if checkpoint:
        restore_adapter(adapted, checkpoint)
    return adapted


def _was_mask(params: Params) -> bool:
    """Return True if the mask's row has been trained as one, or begins as random as all others."""
    if params.model_config_file and not params.init_from:
        return True
    source = _smaller_config(params) if params.init_from else named_config(params)
    return getattr(source, "mask_token_id", None) is not None


def model_shape(
    params: Params, config: PretrainedConfig, compute: torch.dtype
) -> tuple[nn.Module, int]:
    """Return make_model's result on the meta device, and the bytes by which its real 4-bit layers
    are smaller than the plain ones here.
    """
    family, config = FAMILIES[config.model_type], copy.deepcopy(config)
    switch_off_dropout(config)
    if (mask := forbidden_output(config)) is not None:  # the table grows for one behind it
        config.vocab_size = max(config.vocab_size, mask + 1)
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
