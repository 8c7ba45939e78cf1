"""The published checkpoint layouts as data: names and shapes of all tensors, fields a config.json
must have.

A name's `{n}` runs over the layers; shapes are formulas in the fields of the config. Source:
config.json and model.safetensors.index.json of LLaDA-8B-Instruct and Dream-v0-Instruct-7B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from ..base.errors import Code, Problem
from .dream import DreamConfig, DreamModel
from .llada import LLaDAConfig, LLaDAModelLM

REGISTRY: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llada": (LLaDAConfig, LLaDAModelLM),
    "Dream": (DreamConfig, DreamModel),
}

Shape = tuple[int, ...]
ANY = ConfigDict(arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Layout:
    """One published layout.

    `kv` in a shape is the width of all keys: kv heads times the width of a head.
    """

    required: tuple[
        str, ...
    ]  # fields whose absence would silently change a shape or the arithmetic
    names: dict[str, str]  # tensor name -> its shape, as names of fields
    head: str  # absent from files of a model whose head is tied


LAYOUTS: dict[str, Layout] = {
    "llada": Layout(
        required=(
            "d_model",
            "n_heads",
            "n_layers",
            "mlp_hidden_size",
            "vocab_size",
            "rope_theta",
            "rms_norm_eps",
        ),
        names={
            "model.transformer.wte.weight": "embedding_size d_model",
            "model.transformer.blocks.{n}.attn_norm.weight": "d_model",
            "model.transformer.blocks.{n}.q_proj.weight": "d_model d_model",
            "model.transformer.blocks.{n}.k_proj.weight": "kv d_model",
            "model.transformer.blocks.{n}.v_proj.weight": "kv d_model",
            "model.transformer.blocks.{n}.attn_out.weight": "d_model d_model",
            "model.transformer.blocks.{n}.ff_norm.weight": "d_model",
            "model.transformer.blocks.{n}.ff_proj.weight": "mlp_hidden_size d_model",
            "model.transformer.blocks.{n}.up_proj.weight": "mlp_hidden_size d_model",
            "model.transformer.blocks.{n}.ff_out.weight": "d_model mlp_hidden_size",
            "model.transformer.ln_f.weight": "d_model",
            "model.transformer.ff_out.weight": "embedding_size d_model",
        },
        head="model.transformer.ff_out.weight",
    ),
    "Dream": Layout(
        required=(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "rope_theta",
            "rms_norm_eps",
        ),
        names={
            "model.embed_tokens.weight": "vocab_size hidden_size",
            "model.layers.{n}.input_layernorm.weight": "hidden_size",
            "model.layers.{n}.self_attn.q_proj.weight": "hidden_size hidden_size",
            "model.layers.{n}.self_attn.q_proj.bias": "hidden_size",
            "model.layers.{n}.self_attn.k_proj.weight": "kv hidden_size",
            "model.layers.{n}.self_attn.k_proj.bias": "kv",
            "model.layers.{n}.self_attn.v_proj.weight": "kv hidden_size",
            "model.layers.{n}.self_attn.v_proj.bias": "kv",
            "model.layers.{n}.self_attn.o_proj.weight": "hidden_size hidden_size",
            "model.layers.{n}.post_attention_layernorm.weight": "hidden_size",
            "model.layers.{n}.mlp.gate_proj.weight": "intermediate_size hidden_size",
            "model.layers.{n}.mlp.up_proj.weight": "intermediate_size hidden_size",
            "model.layers.{n}.mlp.down_proj.weight": "hidden_size intermediate_size",
            "model.norm.weight": "hidden_size",
            "lm_head.weight": "vocab_size hidden_size",
        },
        head="lm_head.weight",
    ),
}


def published_shapes(config: PretrainedConfig) -> dict[str, Shape]:
    """Every tensor name of the config's model with its shape, as a published checkpoint of that
    size would hold it.
    """
    layout = LAYOUTS[config.model_type]
    sizes = config.to_dict() | {
        "kv": config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    }
    shapes: dict[str, Shape] = {}
    for pattern, formula in layout.names.items():
        shape = tuple(sizes[size] for size in formula.split())
        layers = range(config.num_hidden_layers) if "{n}" in pattern else range(1)
        shapes |= {pattern.format(n=n): shape for n in layers}
    if config.tie_word_embeddings:
        del shapes[layout.head]
    return shapes


def field_problems(
    model_type: str, given: Mapping[str, object], field: str = "config.json"
) -> list[Problem]:
    """One problem naming all required fields that a config.json lacks; a default in place of one
    would be a guess.
    """
    missing = [name for name in LAYOUTS[model_type].required if given.get(name) is None]
    if not missing:
        return []
    return [
        _problem(field, f"the fields of a published {model_type} model", "no " + ", ".join(missing))
    ]


def wrong_kinds(config: PretrainedConfig) -> list[str]:
    """Name the fields of a configuration that hold a value of another kind than they declare, each
    with its value.
    """
    kinds = get_type_hints(
        type(config), localns={"torch": torch}
    )  # by which transformers names its dtypes
    values = ((one.name, getattr(config, one.name, None)) for one in fields(config))
    return [
        f"{name} {value!r}"
        for name, value in values
        if value is not None and not _is(value, kinds[name])
    ]


def _is(value: object, kind: Any) -> bool:
    try:
        TypeAdapter(kind, config=ANY).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def name_problems(config: PretrainedConfig, found: Mapping[str, Shape]) -> list[Problem]:
    """Missing names, unexpected names and wrong shapes of a checkpoint's tensors (name -> shape),
    each list in full.
    """
    expected = published_shapes(config)
    optional = {LAYOUTS[config.model_type].head} if config.tie_word_embeddings else set()
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys() - optional)
    wrong = [
        f"{name} {tuple(found[name])} for {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != expected[name]
    ]
    problems = []
    if missing:
        wanted = f"{len(expected)} tensors by their published names"
        problems.append(_problem("weights", wanted, "missing " + ", ".join(missing)))
    if unexpected:
        problems.append(
            _problem("weights", "no other tensors", "unexpected " + ", ".join(unexpected))
        )
    if wrong:
        problems.append(
            _problem("weights", "the shapes that config.json implies", ", ".join(wrong))
        )
    return problems


def _problem(field: str, expected: str, got: str) -> Problem:
    return Problem(field, expected, got, code=Code.MODEL)
