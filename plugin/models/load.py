"""Models from a folder or hub id, or new from a configuration: safetensors only, no remote code.

`load_model(folder)(input_ids=ids).logits` is the inference interface of every family: [S, T, V],
position i predicts token i.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from ..base.errors import JobError, Problem, first_line, model_error
from ..config.families import FAMILIES, Family
from .checks import BROKEN_FILE
from .checks.weight_files import weights_alone
from .configuration import attention_pattern, load_config, switch_off_dropout
from .decoders.mask_token import MULTIPLE, fill_rows
from .published import REGISTRY


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    four_bit: bool = False,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Return the masked LM of a folder or hub id, in eval mode and without dropout.

    `config`: that of the model, with changes that leave the shapes of its weights as they are.
    `four_bit` loads NF4 with double quantisation and leaves head and norms in `dtype`. Raises
    JobError (exit 4): the model is missing, has no safetensors, no masked-LM head, is of an unknown
    family, or has missing or unexpected weights.
    """
    config = config or load_config(name)
    switch_off_dropout(config)
    options: dict[str, Any] = (
        {"attn_implementation": attn_implementation} if attn_implementation else {}
    )
    if four_bit:
        options["quantization_config"] = nf4(FAMILIES[config.model_type], dtype)
    model_class: Any = (
        REGISTRY[config.model_type][1]
        if config.model_type in REGISTRY
        else _auto_class(FAMILIES[config.model_type])
    )
    try:
        with weights_alone(name) as folder:
            if FAMILIES[config.model_type].decoder:  # from_pretrained asks for it
                (folder / GENERATION_CONFIG_NAME).write_text("{}", encoding="utf-8")
            loaded: Any = model_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                # _check_report names them; transformers would only refer to its log
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except JobError:
        raise
    except BROKEN_FILE as error:
        raise model_error(
            "model_name", "weights that load", f"{name}: {first_line(error)}"
        ) from error
    model, report = loaded
    model.name_or_path = model.config.name_or_path = name  # an adapter of it records this name
    _check_report(name, report)
    if FAMILIES[config.model_type].decoder:
        # Not the folder's: transformers refuses to save some that it loads. Publishing copies it.
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if four_bit:
        keep_exact(model)
    return model.eval()


def _auto_class(family: Family) -> type:
    return AutoModelForCausalLM if family.decoder else AutoModelForMaskedLM


def _check_report(name: str, report: dict[str, Any]) -> None:
    """Refuse missing, unexpected and wrongly shaped weights. Raises JobError (exit 4)."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(str(item) for item in report["mismatched_keys"])
    # Published BERT files also hold a pooler and a next-sentence head, which a masked LM lacks.
    unexpected = [
        key for key in unexpected if "pooler" not in key and "seq_relationship" not in key
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrong shape", mismatched))
    if wrong := [f"{kind} {', '.join(keys)}" for kind, keys in kinds if keys]:
        fix = "An encoder without its masked-LM head cannot be used." if missing else ""
        raise model_error(
            "model_name",
            "exactly the weights of its architecture",
            f"{name}: {'; '.join(wrong)}",
            fix,
        )


def keep_exact(model: nn.Module) -> None:
    """Switch off the repacking of 4-bit layers, in place.

    On some CPUs bitsandbytes permanently repacks a 4-bit layer in bfloat16 on its first forward
    without gradients. Sampling during training would then change the weights being trained.
    """
    if "bitsandbytes" not in sys.modules:  # no 4-bit layer without it, and importing takes a second
        return
    layers: Any = model.modules()
    for module in layers:
        if isinstance(module, sys.modules["bitsandbytes"].nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def nf4(family: Family, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the 4-bit settings of QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

    Raises JobError (exit 2) without bitsandbytes.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        fix = "Run setup.sh again, or set load_in_4bit false."
        raise JobError(
            Problem("load_in_4bit", "bitsandbytes installed", str(error), fix)
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(family.head),  # despite its name, 4-bit layers honour it
    )


def build_model(
    config: PretrainedConfig, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Return a model of random float32 weights in eval mode, on the current default device."""
    options: dict[str, Any] = (
        {"attn_implementation": attn_implementation} if attn_implementation else {}
    )
    if config.model_type in REGISTRY:
        model = REGISTRY[config.model_type][1]._from_config(config, dtype=torch.float32, **options)
    else:
        auto: Any = _auto_class(FAMILIES[config.model_type])
        model = auto.from_config(config, dtype=torch.float32, **options)
    return model.eval()


def fit_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fit a new model's configuration to the tokenizer, in place.

    Raises JobError (exit 4) naming model_config if its vocabulary is too small.
    """
    if config.vocab_size < len(tokenizer):
        raise model_error(
            "model_config",
            f"vocab_size >= the tokenizer's {len(tokenizer)}",
            str(config.vocab_size),
        )
    for name in ("pad", "cls", "sep", "bos", "eos", "mask"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    switch_off_dropout(config)
    check_builds(config, "model_config")


def check_builds(config: PretrainedConfig, field: str) -> None:
    """Build the model's shapes and serialise its configuration, as a run will.

    Raises JobError (exit 4) naming `field`.
    """
    try:
        with torch.device("meta"):
            weights = build_model(copy.deepcopy(config)).named_parameters()
        config.validate()
        config.to_json_string()
        if empty := [name for name, weight in weights if not weight.numel()]:
            raise model_error(field, "sizes above 0", f"no element in {', '.join(empty[:3])}")
    except JobError:
        raise
    except BROKEN_FILE as error:
        raise model_error(field, "a configuration that builds", first_line(error)) from error


def table_rows(model: PreTrainedModel) -> int:
    """Return the rows of a loaded model's embedding table."""
    return cast("torch.nn.Embedding", model.get_input_embeddings()).weight.shape[0]


def fit_to_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, mean_resizing: bool = True
) -> None:
    """Give a model rows for all tokens, and a causal LM's configuration the mask token; in place.

    One that stays causal has no use for a mask, and its row is not trained. A causal LM's table
    grows to a multiple of 64 rows, the same ones whenever it is loaded. Other families' rows are
    random, or with `mean_resizing` draws around the mean of the table.
    """
    old, decoder = table_rows(model), FAMILIES[model.config.model_type].decoder
    if len(tokenizer) > old:
        model.resize_token_embeddings(
            len(tokenizer),
            pad_to_multiple_of=MULTIPLE if decoder else None,
            mean_resizing=mean_resizing and not decoder,
        )
        if decoder:
            fill_rows(model, old)
    name_mask(model.config, tokenizer)


def name_mask(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the mask token into the configuration of a causal LM that diffuses, in place."""
    if FAMILIES[config.model_type].decoder and attention_pattern(config) != "causal":
        config.mask_token_id = tokenizer.mask_token_id
