"""Loading models and tokenizers from a folder or hub id: safetensors only, never remote code, every refusal named.

`load_model(folder)(input_ids=ids).logits` is the inference face of every family: [S, T, V], position i predicts token i.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..families import ARCHITECTURES, FAMILIES, Family
from ..job import model_error

_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def load_model(
    name: str, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None, offline: bool = False
) -> PreTrainedModel:
    """The masked-LM model `name`, in eval mode, dropout off (the noise of diffusion is the regulariser).

    Raises JobError (exit 4): not there, no safetensors, an unknown family, no masked-LM head, missing or unexpected weights.
    """
    config = load_config(name, offline=offline)
    _switch_off_dropout(config)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        model, report = AutoModelForMaskedLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=offline,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise model_error("model_name", "weights that load", f"{name}: {_first_line(error)}") from error
    _check_report(name, report)
    return model.eval()


def load_config(name: str, *, offline: bool = False) -> PretrainedConfig:
    """The configuration of `name`, its files and family checked. Raises JobError (exit 4)."""
    _check_files(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
    except (OSError, ValueError, KeyError) as error:
        raise model_error("model_name", "a model folder or hub id", f"{name}: {_first_line(error)}") from error
    family = family_of(config, name)
    architectures = config.architectures or [family.architecture]
    if family.architecture not in architectures:
        raise model_error("model_name", f"a masked-LM head ({family.architecture})", f"{name}: {', '.join(architectures)}")
    return config


def new_model(config_file: str, tokenizer: PreTrainedTokenizerBase, *, attn_implementation: str | None = None) -> PreTrainedModel:
    """A new model from a config.json, its special-token ids taken from the tokenizer. Uses torch's global generator.

    Raises JobError (exit 4) naming model_config: no configuration of a known family, or too small for the tokenizer.
    """
    config = new_config(config_file)
    fit_config(config, tokenizer)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    return AutoModelForMaskedLM.from_config(config, dtype=torch.float32, **options).eval()


def fit_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a new model's configuration, in place, that of this tokenizer. Raises JobError (exit 4) when it is too small for it."""
    if config.vocab_size < len(tokenizer):
        raise model_error("model_config", f"vocab_size >= the tokenizer's {len(tokenizer)}", str(config.vocab_size))
    for name in ("pad", "cls", "sep", "bos", "eos"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    _switch_off_dropout(config)


def new_config(config_file: str) -> PretrainedConfig:
    """The configuration in a file. Raises JobError (exit 4) naming model_config."""
    try:
        fields = json.loads(Path(config_file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise model_error("model_config", "a readable config.json", f"{config_file}: {_first_line(error)}") from error
    family = FAMILIES.get(fields.get("model_type", "")) if isinstance(fields, dict) else None
    if family is None:
        got = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise model_error("model_config", f"a JSON object with model_type {' or '.join(FAMILIES)}", f"{config_file}: {got!r}")
    return AutoConfig.for_model(**{**fields, "architectures": [family.architecture]})


def load_tokenizer(name: str, *, offline: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer `name`. Raises JobError (exit 4) when it is not there or has no mask token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=offline, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise model_error("tokenizer_name", "a tokenizer that loads", f"{name}: {_first_line(error)}") from error
    if tokenizer.mask_token_id is None:
        raise model_error("model_name", "a tokenizer with a mask token", f"{name}, which has none", "Masked diffusion needs one.")
    return tokenizer


def family_of(config: PretrainedConfig, name: str, field: str = "model_name") -> Family:
    """The family of a configuration. Raises JobError (exit 4) for one we do not know."""
    if config.model_type not in FAMILIES:
        raise model_error(field, f"one of {', '.join(ARCHITECTURES)}", f"{name}, a {config.model_type} model")
    return FAMILIES[config.model_type]


def check_pair(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises JobError (exit 4) when tokenizer and model do not fit, or max_length is beyond the model's positions."""
    config = model.config
    if len(tokenizer) > config.vocab_size:
        raise model_error("tokenizer_name", f"at most the model's {config.vocab_size} tokens", f"{len(tokenizer)} tokens")
    family = FAMILIES[config.model_type]
    if family.max_positions and max_length > (limit := config.max_position_embeddings - family.position_offset):
        raise model_error("max_length", f"at most the model's {limit} positions", str(max_length), "Lower max_length.")


def _check_files(name: str) -> None:
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")):
            raise model_error("model_name", "a folder that exists", name)
        return  # a hub id
    if not (folder / "config.json").is_file():
        raise model_error("model_name", "a folder with config.json", name)
    if not any(folder.glob("*.safetensors")):
        unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in _UNSAFE)
        fix = (
            "Convert once with transformers' save_pretrained in a place you trust; pickled weights can run code."
            if unsafe
            else ""
        )
        raise model_error("model_name", "safetensors weights", f"{name}: {', '.join(unsafe) or 'no weights'}", fix)


def _check_report(name: str, report: dict[str, Any]) -> None:
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(str(item) for item in report["mismatched_keys"])
    # Poolers and next-sentence heads are parts of the published BERT files that a masked LM does not have.
    unexpected = [key for key in unexpected if "pooler" not in key and "seq_relationship" not in key]
    wrong = [
        f"{kind} {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", mismatched))
        if keys
    ]
    if wrong:
        fix = "An encoder without its masked-LM head cannot be used." if missing else ""
        raise model_error("model_name", "exactly the weights of its architecture", f"{name}: {'; '.join(wrong)}", fix)


def _switch_off_dropout(config: PretrainedConfig) -> None:
    for field, value in config.to_dict().items():
        if field.endswith(("dropout", "dropout_prob")) and isinstance(value, float):
            setattr(config, field, 0.0)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
