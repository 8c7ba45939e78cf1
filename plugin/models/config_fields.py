"""What a config.json may hold: sizes, looked at before anything is allocated or looped over, and
values of the right kind.

Each bound is several times the largest published model's, and small enough that a model of it is
laid out on the meta device, and its memory foretold, within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

from ..base.errors import model_error
from .published import wrong_kinds

LAYERS, HEADS, LABELS = 512, 4_096, 65_536
WIDTH, INNER, WORDS = 65_536, 524_288, 4_194_304
POSITIONS = 1 << 24
LEARNED = 1 << 20  # positions of a table that is trained
ANY = 1 << 53  # a number that floats and tensors hold
_MOST = {
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
# What of transformers' own a config.json may ask for; the run decides it. Any other word names a
# repository to fetch and run.
_OWN_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
_OWN_EXPERTS = ("eager", "batched_mm", "grouped_mm")
_DEEPEST = 64  # objects in objects; published files have three


def check_sizes(fields: Mapping[str, Any], field: str, name: str) -> None:
    """Refuse sizes beyond any model's.

    Raise JobError (exit 4) naming the `field` that named the file, and the size.
    """
    for key, value, depth in _numbers(fields):
        most = (
            LEARNED
            if key == "max_position_embeddings" and fields.get("model_type") in _LEARNED
            else _MOST.get(key, ANY)
        )
        if depth > _DEEPEST:
            raise model_error(
                field, f"at most {_DEEPEST} objects in one another", f"{name}: more in {key}"
            )
        if not -ANY <= value <= most:
            long = (
                isinstance(value, int) and abs(value) >= 10**30
            )  # str() of one is slow, and then refused
            shown = f"more than 10^{len(bin(int(value))) * 3 // 10 - 1}" if long else str(value)
            raise model_error(field, f"{key} of at most {most}", f"{name}: {shown}")


def _numbers(fields: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Walk over every number, with the name of the field that holds it and how deep it lies."""
    left: list[tuple[str, Any, int]] = [(str(key), value, 1) for key, value in fields.items()]
    while left:
        key, value, depth = left.pop()
        if isinstance(value, dict) and depth <= _DEEPEST:
            left += [(str(inner), one, depth + 1) for inner, one in value.items()]
        elif isinstance(value, list) and depth <= _DEEPEST:
            left += [(key, one, depth + 1) for one in value]
        elif depth > _DEEPEST or (isinstance(value, int) and not isinstance(value, bool)):
            yield key, value if isinstance(value, int) else 0, depth
        elif isinstance(value, float) and key in _MOST:
            yield key, value, depth


def settle(config: PretrainedConfig, field: str, name: str) -> None:
    """Refuse what no model here can be built by; drop what a run decides itself: dtype and outputs.

    Raises JobError (exit 4).
    """
    if shadows := [key for key in vars(config) if callable(getattr(type(config), key, None))]:
        raise model_error(field, "fields of a configuration", f"{name}: {', '.join(shadows)}")
    if wrong := wrong_kinds(config):  # transformers checks a part of this, of its own models
        raise model_error(field, "values of the right kind", f"{name}: {', '.join(wrong)}")
    if getattr(config, "is_decoder", False):
        raise model_error(
            field,
            "an encoder, whose tokens see both sides",
            f"{name}: is_decoder {config.is_decoder}",
        )
    for key in (
        "quantization_config",
        "auto_map",
    ):  # an empty one says nothing, and would not be loaded
        if not getattr(config, key, True):
            delattr(config, key)
    if not isinstance(getattr(config, "auto_map", {}), dict):
        raise model_error(field, "an object in auto_map", f"{name}: {config.auto_map!r}")
    _choose_nothing(config, field, name)
    config.return_dict, config.dtype = True, None
    config.output_attentions = config.output_hidden_states = False


def _choose_nothing(config: PretrainedConfig, field: str, name: str) -> None:
    """Take code and files out of a configuration's hands, in place.

    Raises JobError (exit 4) where it asks for foreign ones.
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
        fix = "Take it out of config.json: a run chooses code and weights itself."
        raise model_error(
            field,
            "a configuration that names no code and no other weights",
            f"{name}: {', '.join(foreign)}",
            fix,
        )
    config._attn_implementation = config._experts_implementation = None
