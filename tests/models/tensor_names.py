"""Tensor names and shapes of the published checkpoints, as data.

A name's `{n}` runs over the layers; shapes are products of config fields. Source: config.json and
model.safetensors.index.json of LLaDA-8B-Instruct and Dream-v0-Instruct-7B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorNames:
    """Names of a published checkpoint's tensors.

    `kv` in a shape is the width of all keys: kv heads times the width of a head.
    """

    shapes: dict[str, str]  # tensor name -> its shape, as names of fields
    head: str  # absent from files of a model with a tied head


TENSOR_NAMES = {
    "llada": TensorNames(
        shapes={
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
    "Dream": TensorNames(
        shapes={
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
    """Return every tensor of a published checkpoint of the config's size with its shape."""
    names = TENSOR_NAMES[config.model_type]
    sizes = config.to_dict() | {
        "kv": config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    }
    shapes: dict[str, Shape] = {}
    for pattern, formula in names.shapes.items():
        shape = tuple(sizes[size] for size in formula.split())
        layers = range(config.num_hidden_layers) if "{n}" in pattern else range(1)
        shapes |= {pattern.format(n=n): shape for n in layers}
    if config.tie_word_embeddings:
        del shapes[names.head]
    return shapes


def name_problems(config: PretrainedConfig, found: Mapping[str, Shape]) -> list[str]:
    """Return the missing names, unexpected names and wrong shapes of a checkpoint's tensors."""
    expected = published_shapes(config)
    optional = {TENSOR_NAMES[config.model_type].head} if config.tie_word_embeddings else set()
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys() - optional)
    wrong = [
        f"{name} {tuple(found[name])} for {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != expected[name]
    ]
    kinds = (
        (f"expected {len(expected)} tensors by their published names, got missing", missing),
        ("unexpected", unexpected),
        ("expected the shapes that config.json implies, got", wrong),
    )
    return [f"{kind} {', '.join(names)}" for kind, names in kinds if names]
