"""Checks of a config.json's fields: bounded sizes, values of the declared kinds, no foreign code.

Sizes are checked before anything is allocated or looped over. Each bound is several times the
largest published model's. It is also small enough that a model of that size is built on the meta
device, and its memory estimated, within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import PretrainedConfig

from ...base.errors import model_error

LAYERS, HEADS, LABELS = 512, 4_096, 65_536
WIDTH, INNER, WORDS = 65_536, 524_288, 4_194_304
POSITIONS = 1 << 24
LEARNED = 1 << 20  # positions of a learned table
ANY = 1 << 53  # a number that floats and tensors hold
_BOUNDS = {
    **dict.fromkeys(("num_hidden_layers", "n_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads", "n_kv_heads"), HEADS),
    **dict.fromkeys(("hidden_size", "d_model", "head_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "mlp_hidden_size"), INNER),
    **dict.fromkeys(("vocab_size", "embedding_size", "type_vocab_size"), WORDS),
    **dict.fromkeys(
        ("max_position_embeddings", "max_sequence_length", "sliding_window", "local_attention"),
        POSITIONS,
    ),
    "num_labels": LABELS,
    "mlp_ratio": 1_024,
    "num_experts": HEADS,
}
_LEARNED = {"bert", "roberta"}
# Implementations of transformers that a config.json may name; the run chooses its own. Any other
# word names a repository whose code would be fetched and run.
_OWN_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
_OWN_EXPERTS = ("eager", "batched_mm", "grouped_mm")
_MAX_DEPTH = 64  # nested objects; published files have three


def check_sizes(values: Mapping[str, Any], field: str, name: str) -> None:
    """Refuse sizes larger than any model has.

    Raises JobError (exit 4) naming the `field` that named the file, and the size.
    """
    for key, value, depth in _numbers(values):
        bound = (
            LEARNED
            if key == "max_position_embeddings" and values.get("model_type") in _LEARNED
            else _BOUNDS.get(key, ANY)
        )
        if depth > _MAX_DEPTH:
            raise model_error(
                field, f"at most {_MAX_DEPTH} nested objects", f"{name}: more in {key}"
            )
        if not -ANY <= value <= bound:
            # str() of a very long integer is slow, and raises from a certain length
            long = isinstance(value, int) and abs(value) >= 10**30
            shown = f"more than 10^{len(bin(int(value))) * 3 // 10 - 1}" if long else str(value)
            raise model_error(field, f"{key} of at most {bound}", f"{name}: {shown}")


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield every number with the name of its field and its depth in the file."""
    left: list[tuple[str, Any, int]] = [(str(key), value, 1) for key, value in values.items()]
    while left:
        key, value, depth = left.pop()
        if isinstance(value, dict) and depth <= _MAX_DEPTH:
            left += [(str(inner), item, depth + 1) for inner, item in value.items()]
        elif isinstance(value, list) and depth <= _MAX_DEPTH:
            left += [(key, item, depth + 1) for item in value]
        elif depth > _MAX_DEPTH or (isinstance(value, int) and not isinstance(value, bool)):
            yield key, value if isinstance(value, int) else 0, depth
        elif isinstance(value, float) and key in _BOUNDS:
            yield key, value, depth


def settle(config: PretrainedConfig, field: str, name: str) -> None:
    """Refuse fields from which no model here can be built, and drop those that a run decides.

    The run decides dtype and outputs. Changes `config` in place. Raises JobError (exit 4).
    """
    if shadows := [key for key in vars(config) if callable(getattr(type(config), key, None))]:
        raise model_error(field, "fields of a configuration", f"{name}: {', '.join(shadows)}")
    if wrong := wrong_kinds(config):  # transformers checks some of this, for its own models only
        raise model_error(field, "values of the right kind", f"{name}: {', '.join(wrong)}")
    if getattr(config, "is_decoder", False):
        raise model_error(
            field,
            "an encoder with bidirectional attention",
            f"{name}: is_decoder {config.is_decoder}",
        )
    for key in ("quantization_config", "auto_map"):
        if not getattr(config, key, True):  # empty means absent, but does not load
            delattr(config, key)
    if not isinstance(getattr(config, "auto_map", {}), dict):
        raise model_error(field, "an object in auto_map", f"{name}: {config.auto_map!r}")
    _drop_implementations(config, field, name)
    config.return_dict, config.dtype = True, None
    config.output_attentions = config.output_hidden_states = False


def _drop_implementations(config: PretrainedConfig, field: str, name: str) -> None:
    """Drop the configuration's choice of implementations, in place.

    Raises JobError (exit 4) if it names foreign code or other weights.
    """
    asked = {
        "attn_implementation": (config._attn_implementation, _OWN_ATTENTION),
        "experts_implementation": (config._experts_implementation, _OWN_EXPERTS),
        "transformers_weights": (getattr(config, "transformers_weights", None), ()),
    }
    foreign = [
        f"{key} {str(value)[:80]!r}"
        for key, (value, own) in asked.items()
        if value is not None and value not in own
    ]
    if foreign:
        fix = "Remove it from config.json: a run chooses code and weights itself."
        raise model_error(
            field,
            "a configuration that names no code and no other weights",
            f"{name}: {', '.join(foreign)}",
            fix,
        )
    config._attn_implementation = config._experts_implementation = None


def wrong_kinds(config: PretrainedConfig) -> list[str]:
    """Return `name value` of each field whose value is not of the kind that the field declares."""
    # transformers declares its dtypes by the name `torch`
    kinds = get_type_hints(type(config), localns={"torch": torch})
    values = ((field.name, getattr(config, field.name, None)) for field in fields(config))
    return [
        f"{name} {value!r}"
        for name, value in values
        if value is not None and not _is_kind(value, kinds[name])
    ]


def _is_kind(value: object, kind: Any) -> bool:
    adapter = TypeAdapter(_plain(kind), config=ConfigDict(arbitrary_types_allowed=True))
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _plain(kind: Any) -> Any:
    """Return a kind with plain dictionaries for those of declared keys: RoPE's parameters.

    pydantic refuses these before Python 3.12; a model that is built finds wrong ones.
    """
    if is_typeddict(kind):
        return dict
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(_plain(one) for one in get_args(kind))]  # noqa: UP007  # of a tuple
    return kind
