"""SDAR (arXiv 2510.06303): Qwen3's layers and names, denoised block by block without a shift.

Serving engines find this layout by its architecture's name. Importing this file makes transformers'
Auto classes load it as Qwen3.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from .configuration_sdar import SDARConfig

MASK_ID = 151669  # sglang and lmdeploy take this one, whatever config.json says
BLOCK_FILE = "sglang.yaml"


class SDARForCausalLM(Qwen3ForCausalLM):
    """Qwen3 under the name by which engines load block diffusion."""

    config_class = SDARConfig


class SDARModel(Qwen3Model):
    """The layers of an SDAR folder without its head."""

    config_class = SDARConfig


AutoConfig.register(SDARConfig.model_type, SDARConfig, exist_ok=True)
AutoModel.register(SDARConfig, SDARModel, exist_ok=True)
AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM, exist_ok=True)


def sdar_config(config: PretrainedConfig) -> SDARConfig:
    """Return the SDAR configuration of a Qwen3 model that is denoised block by block."""
    fields = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version"):
        fields.pop(name, None)
    return SDARConfig(**fields)


def block_file(config: PretrainedConfig) -> str:
    """Return the content of BLOCK_FILE; without it sglang denoises blocks of 4 tokens."""
    return f"block_size: {config.block_size}\n"


def warning_of_mask(mask_id: int) -> str:
    """Return a warning about a mask that engines would not take; empty for theirs."""
    if mask_id == MASK_ID:
        return ""
    return (
        f"The mask token is id {mask_id}. sglang and lmdeploy take id {MASK_ID} for every SDAR model"
        " and read no other from config.json: served there as they are, this model writes garbage."
    )


def is_served(config: dict[str, Any]) -> bool:
    """Return True for the config.json of a model that engines denoise as it was trained."""
    as_sdar = config.get("clean_context", "block") == "block" and not config.get("block_shift")
    return config["model_type"] == "sdar" and as_sdar


def serving_lines(config: dict[str, Any]) -> list[str]:
    """Return a card's lines on serving an SDAR folder with engines."""
    warning = warning_of_mask(config["mask_token_id"])
    return [
        "## Serving",
        "",
        *([f"**Warning.** {warning}", ""] if warning else []),
        "These commands are *untested here*. `--trust-remote-code` runs `configuration_sdar.py` of "
        "this folder, which only names the fields of config.json.",
        "",
        "```",
        "python -m sglang.launch_server --model-path FOLDER --trust-remote-code \\",
        f"  --dllm-algorithm LowConfidence --dllm-algorithm-config FOLDER/{BLOCK_FILE}",
        "lmdeploy serve api_server FOLDER --backend pytorch \\",
        f"  --dllm-block-length {config['block_size']} --dllm-unmasking-strategy low_confidence_dynamic",
        "```",
        "",
    ]
