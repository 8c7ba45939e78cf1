"""Model configurations from a model folder, a hub id or a config.json, checked field by field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, PretrainedConfig

from ..base.errors import JobError, Problem, first_line, model_error
from ..config.families import FAMILIES
from ..config.methods import METHODS
from ..config.model_files import (
    check_model_files,
    check_quantisation,
    read_small,
    refuse_other_methods,
    refuse_unknown_model,
)
from ..run.facts import BlockFacts
from .checks import BROKEN_FILE
from .checks.config_fields import check_sizes, settle
from .decoders import sdar  # noqa: F401  # Auto classes know it then
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
    family = FAMILIES[config.model_type]
    architectures = config.architectures or [family.architecture]
    if family.architecture not in architectures:
        raise model_error(
            "model_name",
            f"a {'language-model' if family.decoder else 'masked-LM'} head ({family.architecture})",
            f"{name}: {', '.join(architectures)}",
        )
    return config


def _read_config(name: str) -> PretrainedConfig:
    fields, _ = PretrainedConfig.get_config_dict(name)
    check_sizes(fields, "model_name", name)
    check_quantisation(name, fields)  # check_model_files has not seen a hub id's fields
    refuse_unknown_model(fields, name)
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
    refuse_unknown_model(fields, config_file, "model_config")
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


def check_family_method(config: PretrainedConfig, method: str) -> None:
    """Refuse a method other than that of the model's family. Raises JobError (exit 2)."""
    refuse_other_methods(FAMILIES[config.model_type], method)


Pattern = Literal["full", "causal", "block"]


def attention_pattern(config: PretrainedConfig) -> Pattern:
    """Return which tokens a token of one document attends to.

    full: all. causal: those before it and itself. block: those of its block of `block_size` tokens
    and of the blocks before it. transformers' causal LMs are causal unless their configuration says
    otherwise.
    """
    if not FAMILIES[config.model_type].decoder:
        return "causal" if is_causal(config) else "full"
    if getattr(config, "block_size", None):
        return "block"
    return "causal" if getattr(config, "is_causal", True) else "full"


def set_attention(
    config: PretrainedConfig, method: str | None, block: BlockFacts | None = None
) -> None:
    """Give a configuration the attention with which a method trains its model; in place.

    A model of unknown method stays as it is.
    """
    if method not in METHODS:
        return
    causal = METHODS[method].causal
    if config.model_type in REGISTRY:
        config.causal = causal
    elif FAMILIES[config.model_type].decoder:
        for field in ("is_causal", *_BLOCK_FIELDS):
            vars(config).pop(field, None)
        if block:
            config.block_size = block.size
            config.clean_context = block.clean_context
            config.block_shift = block.shift
        elif not causal:
            config.is_causal = False


_BLOCK_FIELDS = ("block_size", "clean_context", "block_shift")


def block_facts(config: PretrainedConfig) -> BlockFacts | None:
    """Return the blocks of a configuration whose attention has blocks."""
    if attention_pattern(config) != "block":
        return None
    return BlockFacts(
        size=config.block_size,
        clean_context=getattr(config, "clean_context", "block"),
        shift=getattr(config, "block_shift", False),
    )


def logit_shift(config: PretrainedConfig) -> int:
    """Return by how many places a hidden state lies before the token that it predicts."""
    if block := block_facts(config):
        return int(block.shift)
    causal = attention_pattern(config) == "causal"
    return 1 if causal else FAMILIES[config.model_type].shift


def longest_sequence(config: PretrainedConfig) -> int:
    """Return the longest sequence that a configuration has positions for, in tokens."""
    return config.max_position_embeddings - FAMILIES[config.model_type].position_offset


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
        kinds = bases.get("full_attention", bases)  # ModernBERT has a base for each kind of layer
        kinds["rope_theta"] = rope_theta
        config.rope_parameters = bases
    config.max_position_embeddings = max(config.max_position_embeddings, length)


def switch_off_dropout(config: PretrainedConfig) -> None:
    """Set every dropout of a configuration to 0, in place.

    Diffusion noise is the regulariser, and packed attention supports no dropout.
    """
    for field, value in config.to_dict().items():
        if field.endswith(("dropout", "dropout_prob")) and isinstance(value, float):
            setattr(config, field, 0.0)
