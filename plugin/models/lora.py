"""LoRA adapters: adding, restoring, loading and merging."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypeIs

from ..base.errors import JobError, Problem, model_error
from ..config.families import Family
from ..config.model_files import read_json
from ..run.facts import read_facts
from .checks.adapter_config import check_adapter_config
from .configuration import set_attention
from .load import fit_to_tokenizer, load_model

# importing peft, and bitsandbytes with it, takes two of a worker's six seconds, so only functions
# that need it import it
if TYPE_CHECKING:
    from peft import PeftModel

MaybeAdapted: TypeAlias = "PreTrainedModel | PeftModel"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraSettings:
    """Settings of LoRA, W + alpha / r * B A (Hu et al. 2021, arXiv 2106.09685)."""

    r: int
    alpha: int
    dropout: float
    targets: str  # auto, or layer names, comma separated


def add_adapter(
    model: PreTrainedModel, family: Family, settings: LoraSettings, new_ids: Sequence[int]
) -> PeftModel:
    """Freeze `model`, add an adapter to it and return it.

    Adapter weights are float32; norms and head keep their dtype. Rows `new_ids` of the embedding
    train too, and of a tied head with it. An untied head then trains in full, or it could never
    predict them. The head keeps its own row of a causal LM's mask, which is never an output. Raises
    JobError (exit 2) naming lora_targets if a name matches no linear layer.
    """
    from peft import LoraConfig, get_peft_model

    from .linear.lean_lora import use_lean_forward

    trained: dict[str, Any] = {}
    mask = getattr(model.config, "mask_token_id", None) if family.decoder else None
    predicted = set(new_ids) - {mask}
    head = model.get_output_embeddings()
    if new_ids:
        embedding = _name_of(model, model.get_input_embeddings())
        trained["trainable_token_indices"] = {embedding: list(new_ids)}
        if predicted and not model.config.tie_word_embeddings:
            trained["modules_to_save"] = [_name_of(model, cast("nn.Module", head))]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_layers(model, family, settings.targets),
        bias="none",
        **trained,
    )
    adapted = cast("PeftModel", get_peft_model(model, config))
    if new_ids and not predicted and model.config.tie_word_embeddings:
        # Its wrapper would copy the table in every forward and take its gradient in every backward.
        model.set_output_embeddings(cast("nn.Module", head))
    use_lean_forward(adapted)
    for weight in adapted.parameters():
        if weight.requires_grad:  # peft converts the adapter, but not a head that trains in full
            weight.data = weight.data.float()
    return adapted


def has_adapter(model: nn.Module) -> TypeIs[PeftModel]:
    """Return True for a model with an adapter, without importing peft."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def target_layers(model: PreTrainedModel, family: Family, targets: str) -> list[str]:
    """Return the full names of the linear layers to adapt; auto is all below the output head."""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not in_head(name, family)
    ]
    if targets == "auto":
        return linear
    wanted = [part.strip() for part in targets.split(",") if part.strip()]
    absent = [part for part in wanted if not any(_ends_with(name, part) for name in linear)]
    if absent or not wanted:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise JobError(
            Problem(
                "lora_targets",
                f"auto or names of linear layers ({known})",
                ", ".join(absent) or "nothing",
            )
        )
    return [name for name in linear if any(_ends_with(name, part) for part in wanted)]


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Load a saved adapter, and all that trains with it, into a model with one of equal shape."""
    from peft import set_peft_model_state_dict

    loaded = set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
    assert not loaded.unexpected_keys, loaded.unexpected_keys


def in_head(name: str, family: Family) -> bool:
    """Return True for the name of a module in the family's output head."""
    return any(name == head or name.startswith(f"{head}.") for head in family.head)


def _ends_with(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def merged_model(
    base: str,
    adapter: Path,
    *,
    four_bit: bool,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Return the base with the adapter merged into it, as plain weights in `dtype`.

    `four_bit` merges onto the dequantised NF4 weights. `tokenizer`: that of the adapter, for whose
    tokens the base may lack rows. Raises JobError (exit 4) if the adapter does not fit this base.
    """
    model = load_model(base, dtype=dtype, four_bit=four_bit)
    if four_bit:
        model = dequantized(model, dtype)
    facts = read_facts(adapter)
    set_attention(model.config, facts.method, facts.block)
    if tokenizer:
        fit_to_tokenizer(model, tokenizer, mean_resizing=False)
    _check_fits(model, base, adapter)
    return cast("PreTrainedModel", with_adapter(model, adapter).merge_and_unload()).eval()


def with_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Return the model with a saved adapter, for inference."""
    from peft import PeftModel

    check_adapter_config(adapter / ADAPTER_CONFIG)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def four_bit_saves(model: nn.Module, family: Family) -> int:
    """Return the bytes that NF4 saves in a model's linear layers below the head.

    NF4 needs half a byte a weight, a one-byte scale for 64 weights, and a float32 scale for 256
    scales (double quantisation, arXiv 2305.14314).
    """
    linear = (
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not in_head(name, family)
    )
    return sum(
        round(weight.numel() * (weight.element_size() - 0.5 - (1 + 4 / 256) / 64))
        for weight in linear
    )


def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a 4-bit model with plain linear layers that hold exactly its dequantised weights."""
    plain = model.dequantize(dtype=dtype)
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if leftover in vars(plain.config):
            delattr(plain.config, leftover)
    return cast("PreTrainedModel", plain)


def _check_fits(model: PreTrainedModel, base: str, adapter: Path) -> None:
    """Refuse an adapter whose names or shapes differ from the model's. Raises JobError (exit 4).

    peft would load the layers that happen to match and leave the rest at zero.
    """
    if not (adapter / ADAPTER_WEIGHTS).is_file() or not (adapter / ADAPTER_CONFIG).is_file():
        raise model_error(
            "adapter", f"a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}", str(adapter)
        )
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    wrong: list[str] = []
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  # not a dict
            layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
            side = {"A.weight": 1, "B.weight": 0}.get(part)
            if side is None:
                continue
            shape = shapes.get(f"{layer}.weight")
            if shape is None or shape[side] != file.get_slice(key).get_shape()[side]:
                wrong.append(layer)
    if wrong:
        some = ", ".join(sorted(set(wrong))[:3])
        trained_on = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
        got = f"{adapter}, made for {trained_on}: {some} do not fit"
        raise model_error(
            "adapter", f"an adapter of {base}", got, "Give the model that it was trained on."
        )
