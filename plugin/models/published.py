"""Families that this project computes in its own code, and their published config.json files.

Source: config.json of LLaDA-8B-Instruct and Dream-v0-Instruct-7B.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig, PreTrainedModel

from ..base.errors import Code, Problem
from .dream import DreamConfig, DreamModel
from .llada import LLaDAConfig, LLaDAModelLM

REGISTRY: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llada": (LLaDAConfig, LLaDAModelLM),
    "Dream": (DreamConfig, DreamModel),
}

# Fields whose absence would silently change a shape or the arithmetic.
REQUIRED = {
    "llada": (
        "d_model",
        "n_heads",
        "n_layers",
        "mlp_hidden_size",
        "vocab_size",
        "rope_theta",
        "rms_norm_eps",
    ),
    "Dream": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "rope_theta",
        "rms_norm_eps",
    ),
}


def field_problems(
    model_type: str, given: Mapping[str, object], field: str = "config.json"
) -> list[Problem]:
    """Return one problem that names all required fields which a config.json lacks.

    A default in place of a missing field would be a guess.
    """
    missing = [name for name in REQUIRED[model_type] if given.get(name) is None]
    if not missing:
        return []
    expected = f"the fields of a published {model_type} model"
    return [Problem(field, expected, "no " + ", ".join(missing), code=Code.MODEL)]
