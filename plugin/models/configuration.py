"""Model configurations from a model folder, a hub id or a config.json, checked field by field."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from ..base.errors import JobError, Problem, first_line, model_error
from ..config.families import ARCHITECTURES, FAMILIES, Family
from ..config.methods import METHODS
from ..config.model_files import (
    check_model_files,
    check_quantisation,
    read_small,
    refuse_other_methods,
)
from .checks import BROKEN_FILE
from .checks.config_fields import check_sizes, settle
from .masks import is_causal
from .published import REGISTRY, field_problems


def load_config(name: str) -> PretrainedConfig:
    """Return the configuration of a model folder or hub id, its files and family checked.

    Raises JobError (exit 4) naming model_name.
    """
    check_model_files(name)
    try:
        config = _read_config(name)
    except JobError:
        raise
    except BROKEN_FILE as error:
        raise model_error(
            "model_name", "a model folder or hub id", f"{name}: {first_line(error)}"
        ) from error
    family = family_of(config, name)
    architectures = config.architectures or [family.architecture]
    if family.architecture not in architectures:
        raise model_error(
            "model_name",
            f"a masked-LM head ({family.architecture})",
            f"{name}: {', '.join(architectures)}",
        )
    return config


def _read_config(name: str) -> PretrainedConfig:
    fields, _ = PretrainedConfig.get_config_dict(name)
    check_sizes(fields, "model_name", name)
    check_quantisation(name, fields)  # check_model_files has not seen a hub id's fields
    if (model_type := fields.get("model_type")) in REGISTRY:
        if problems := field_problems(model_type, fields):
            raise JobError(*problems)
        config = REGISTRY[model_type][0].from_pretrained(name)
    else:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    settle(config, "model_name", name)
    return config


def new_config(config_file: str) -> PretrainedConfig:
    """Return the configuration of a new model from a config.json.

    Raises JobError (exit 4) naming model_config.
    """
    try:
        fields = json.loads(read_small(Path(config_file).expanduser()))
    except (OSError, ValueError, RecursionError) as error:
        raise model_error(
            "model_config", "a readable config.json", f"{config_file}: {first_line(error)}"
        ) from error
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        got = repr(model_type) if isinstance(fields, dict) else type(fields).__name__
        raise model_error(
            "model_config",
            f"a JSON object with model_type {' or '.join(FAMILIES)}",
            f"{config_file}: {got}",
        )
    check_quantisation(config_file, fields, field="model_config")
    check_sizes(fields, "model_config", config_file)
    if model_type in REGISTRY and (problems := field_problems(model_type, fields, "model_config")):
        raise JobError(*problems)
    fields["architectures"] = [FAMILIES[model_type].architecture]
    try:
        if model_type in REGISTRY:
            config = REGISTRY[model_type][0](
                **{key: value for key, value in fields.items() if key != "model_type"}
            )
        else:
            config = AutoConfig.for_model(**fields)
        settle(config, "model_config", config_file)
    except JobError:
        raise
    except BROKEN_FILE as error:
        raise model_error(
            "model_config", "values of the right kind", f"{config_file}: {first_line(error)}"
        ) from error
    return config


def family_of(config: PretrainedConfig, name: str, field: str = "model_name") -> Family:
    """Return the family of a configuration. Raises JobError (exit 4) if it is unknown."""
    if config.model_type not in FAMILIES:
        raise model_error(
            field, f"one of {', '.join(ARCHITECTURES)}", f"{name}, a {config.model_type} model"
        )
    return FAMILIES[config.model_type]


def check_family_method(config: PretrainedConfig, method: str) -> None:
    """Refuse a method other than that of the model's family. Raises JobError (exit 2)."""
    refuse_other_methods(FAMILIES[config.model_type], method)


def set_causal(config: PretrainedConfig, method: str | None) -> None:
    """Make a configuration causal, or not, as a method trains its model; in place.

    Only families of this project can be causal. A model of unknown method stays as it is.
    """
    if config.model_type in REGISTRY and method in METHODS:
        config.causal = METHODS[method].causal


def logit_shift(config: PretrainedConfig) -> int:
    """Return by how many places a hidden state lies before the token that it predicts."""
    return 1 if is_causal(config) else FAMILIES[config.model_type].shift


def embedding_rows(config: PretrainedConfig) -> int:
    """Return the rows of the embedding table, which may be longer than LLaDA's vocabulary."""
    return getattr(config, "embedding_size", None) or config.vocab_size


def extend_context(config: PretrainedConfig, rope_theta: float, length: int) -> None:
    """Give rotary positions another base, unless it is 0, and room for `length` tokens, in place.

    In ModernBERT only the global layers see a full text, so that the base is theirs; its local ones
    keep theirs (arXiv 2412.13663, section 2.2). Raises JobError (exit 2) if the model has learned
    positions, which cannot be extended.
    """
    if FAMILIES[config.model_type].max_positions:
        if rope_theta:
            able = ", ".join(one.name for one in FAMILIES.values() if not one.max_positions)
            expected = f"a model with rotary positions ({able})"
            raise JobError(Problem("rope_theta", expected, config.model_type, "Set rope_theta 0."))
        return
    if rope_theta and config.model_type in REGISTRY:
        setattr(config, "rope_theta", rope_theta)  # noqa: B010
    elif rope_theta:
        bases = copy.deepcopy(config.rope_parameters)
        bases["full_attention"]["rope_theta"] = rope_theta
        config.rope_parameters = bases
    config.max_position_embeddings = max(config.max_position_embeddings, length)


def switch_off_dropout(config: PretrainedConfig) -> None:
    """Set every dropout of a configuration to 0, in place.

    Diffusion noise is the regulariser, and packed attention supports no dropout.
    """
    for field, value in config.to_dict().items():
        if field.endswith(("dropout", "dropout_prob")) and isinstance(value, float):
            setattr(config, field, 0.0)
