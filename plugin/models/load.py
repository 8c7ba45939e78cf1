"""Loading models and tokenizers from a folder or hub id: safetensors only, never remote code, every
refusal named.

`load_model(folder)(input_ids=ids).logits` is the inference face of every family: [S, T, V],
position i predicts token i.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.utils import cached_file

from ..base.errors import JobError, Problem, first_line, model_error
from ..config.families import ARCHITECTURES, FAMILIES, Family
from ..config.model_files import (
    check_copied,
    check_lengths,
    check_model_files,
    check_pointers,
    check_quantisation,
    read_small,
    refuse_other_methods,
    slow_tokenizer,
    tokenizer_class,
)
from .config_fields import check_sizes, settle
from .patterns import check_patterns
from .published import REGISTRY, field_problems
from .weights import weights_alone

# What the libraries raise over a broken file; these have no common base below Exception.
_BROKEN = (
    *(
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
    ),
    *(SafetensorError, StrictDataclassError),
)


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    four_bit: bool = False,
) -> PreTrainedModel:
    """The masked LM `name`, in eval mode, dropout off (the noise of diffusion is the regulariser).

    `four_bit`: NF4 with double quantisation, head and norms left in `dtype`. Raises JobError (exit
    4): not there, no safetensors, an unknown family, no masked-LM head, missing or unexpected
    weights.
    """
    config = load_config(name)
    switch_off_dropout(config)
    options: dict[str, Any] = (
        {"attn_implementation": attn_implementation} if attn_implementation else {}
    )
    if four_bit:
        options["quantization_config"] = nf4(FAMILIES[config.model_type], dtype)
    model_class = (
        REGISTRY[config.model_type][1] if config.model_type in REGISTRY else AutoModelForMaskedLM
    )
    try:
        with weights_alone(name) as folder:
            loaded: Any = model_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                # _check_report names them; transformers would only point to its log
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except JobError:
        raise
    except _BROKEN as error:
        raise model_error(
            "model_name", "weights that load", f"{name}: {first_line(error)}"
        ) from error
    model, report = loaded
    model.name_or_path = model.config.name_or_path = name  # what an adapter of it records
    _check_report(name, report)
    if four_bit:
        keep_exact(model)
    return model.eval()


def keep_exact(model: nn.Module) -> None:
    """On some CPUs bitsandbytes repacks a 4-bit layer in bfloat16 at its first forward without
    gradients, for good: the samples of a training run would change the weights it trains on.
    """
    if (
        "bitsandbytes" not in sys.modules
    ):  # which takes a second to import, and no such layer is without it
        return
    layers: Any = model.modules()
    for module in layers:
        if isinstance(module, sys.modules["bitsandbytes"].nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def nf4(family: Family, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The 4-bit settings of QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

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
        llm_int8_skip_modules=list(
            family.head
        ),  # the name is the library's; it holds for 4 bits too
    )


def load_config(name: str) -> PretrainedConfig:
    """The configuration of `name`, its files and family checked. Raises JobError (exit 4)."""
    check_model_files(name)
    try:
        fields, _ = PretrainedConfig.get_config_dict(name)
        check_sizes(fields, "model_name", name)
        check_quantisation(name, fields)  # of a hub id too
        config_class = (
            REGISTRY[fields["model_type"]][0]
            if fields.get("model_type") in REGISTRY
            else AutoConfig
        )
        if config_class is AutoConfig:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        else:
            if problems := field_problems(fields["model_type"], fields):
                raise JobError(*problems)
            config = config_class.from_pretrained(name)
        settle(config, "model_name", name)
    except JobError:
        raise
    except _BROKEN as error:
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


def new_model(
    config_file: str, tokenizer: PreTrainedTokenizerBase, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A new model from a config.json, its special-token ids taken from the tokenizer. Uses torch's
    global generator.

    Raises JobError (exit 4) naming model_config: no configuration of a known family, or too small
    for the tokenizer.
    """
    config = new_config(config_file)
    fit_config(config, tokenizer)
    return build_model(config, attn_implementation)


def build_model(
    config: PretrainedConfig, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A model of random float32 weights in eval mode, on the current default device."""
    options: dict[str, Any] = (
        {"attn_implementation": attn_implementation} if attn_implementation else {}
    )
    if config.model_type in REGISTRY:
        model = REGISTRY[config.model_type][1]._from_config(config, dtype=torch.float32, **options)
    else:
        model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32, **options)
    return model.eval()


def fit_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a new model's configuration, in place, that of this tokenizer.

    Raises JobError (exit 4) when it is too small.
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
    """Build the model's shapes and write its configuration, as a run will.

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
    except _BROKEN as error:
        raise model_error(field, "a configuration that builds", first_line(error)) from error


def new_config(config_file: str) -> PretrainedConfig:
    """The configuration in a file. Raises JobError (exit 4) naming model_config."""
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
        return config
    except JobError:
        raise
    except _BROKEN as error:
        raise model_error(
            "model_config", "values of the right kind", f"{config_file}: {first_line(error)}"
        ) from error


def load_tokenizer(
    name: str, *, family: Family | None = None, field: str = "model_name"
) -> PreTrainedTokenizerBase:
    """The tokenizer `name`; mask token and chat template of a published family are added where its
    files lack them.

    Raises JobError (exit 4) when it is not there or, naming the `field` that named it, has no mask
    token.
    """
    check_copied(Path(name).expanduser(), field)
    check_lengths(Path(name).expanduser(), field)
    check_pointers(
        Path(name).expanduser(), field, ("tokenizer*", "vocab*", "special_tokens_map.json")
    )
    try:
        tokenizer = (
            _published_tokenizer(name)
            if family and family.name in REGISTRY
            else _any_tokenizer(name)
        )
    except _BROKEN as error:
        if kind := tokenizer_class(name):
            raise slow_tokenizer(name, kind, _missing_library(kind, name)) from error
        raise model_error(
            "tokenizer_name", "a tokenizer that loads", f"{name}: {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise slow_tokenizer(name, type(tokenizer).__name__)
    check_patterns(tokenizer, field, name)
    if len(tokenizer) <= len(
        tokenizer.all_special_ids
    ):  # transformers 5 makes one up for a folder without tokenizer files
        raise model_error(
            "tokenizer_name",
            "a tokenizer with words",
            f"{name}, which has none",
            "Name one in tokenizer_name.",
        )
    if tokenizer.mask_token_id is None and family and family.mask_token in tokenizer.get_vocab():
        tokenizer.mask_token = family.mask_token
    if tokenizer.mask_token_id is None:
        raise model_error(
            field,
            "a tokenizer with a mask token",
            f"{name}, which has none",
            "Masked diffusion needs one.",
        )
    if family and not tokenizer.chat_template and _has_tokens_of(family.chat_template, tokenizer):
        tokenizer.chat_template = family.chat_template
    return tokenizer


def _has_tokens_of(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell if a published template's markers are tokens here: a model trained from scratch never
    saw the others.
    """
    markers, words = set(re.findall(r"<\|\w+\|>", template)), tokenizer.get_vocab()
    return bool(markers) and all(marker in words for marker in markers)


def _any_tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)


def _missing_library(kind: str, name: str) -> str:
    """Find the library that a tokenizer's class asks for, where that is why it does not load."""
    try:
        getattr(transformers, kind).from_pretrained(name)
    except ImportError as error:
        found = re.search(r"install (\S+)", str(error))
        return found[1] if found else str(error.name or "")
    except (
        Exception
    ):  # the class's own complaint, or no such class: what is missing is its tokenizer.json
        return ""
    return ""


def _published_tokenizer(name: str) -> Any:
    """LLaDA's and Dream's folders name classes of their own code; a tokenizer.json says it all, and
    Dream's vocab is Qwen2's.
    """
    has_file = cached_file(
        name,
        "tokenizer.json",
        _raise_exceptions_for_missing_entries=False,
    )
    kind = PreTrainedTokenizerFast if has_file else Qwen2Tokenizer
    return kind.from_pretrained(name)


def family_of(config: PretrainedConfig, name: str, field: str = "model_name") -> Family:
    """The family of a configuration. Raises JobError (exit 4) for one we do not know."""
    if config.model_type not in FAMILIES:
        raise model_error(
            field, f"one of {', '.join(ARCHITECTURES)}", f"{name}, a {config.model_type} model"
        )
    return FAMILIES[config.model_type]


def check_method(config: PretrainedConfig, method: str) -> None:
    """Raises JobError (exit 2) when the chosen method is not the one of this model's family."""
    refuse_other_methods(FAMILIES[config.model_type], method)


def check_pair(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Raises JobError (exit 4) when tokenizer and model do not fit, or max_length is beyond the
    model's positions.
    """
    rows = embedding_rows(config)
    if len(tokenizer) > rows and not new_tokens(config, tokenizer):
        raise model_error(
            "tokenizer_name",
            f"the model's vocabulary (at most {rows} tokens)",
            f"{len(tokenizer)} tokens",
        )
    saved = getattr(config, "mask_token_id", None)
    if saved is not None and saved != tokenizer.mask_token_id:
        raise model_error(
            "tokenizer_name",
            f"the model's mask token (id {saved})",
            f"id {tokenizer.mask_token_id}",
        )
    family = FAMILIES[config.model_type]
    if family.max_positions and max_length > (
        limit := config.max_position_embeddings - family.position_offset
    ):
        raise model_error(
            "max_length",
            f"at most the model's {limit} positions",
            str(max_length),
            "Lower max_length.",
        )


def table_rows(model: PreTrainedModel) -> int:
    """Rows of the embedding table that a loaded model has."""
    return cast("torch.nn.Embedding", model.get_input_embeddings()).weight.shape[0]


def embedding_rows(config: PretrainedConfig) -> int:
    """Rows of the embedding table; LLaDA's may be longer than its vocabulary."""
    return getattr(config, "embedding_size", None) or config.vocab_size


def new_tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that were added to the model's own vocabulary; empty when the tokenizer is simply another
    one.
    """
    rows = embedding_rows(config)
    beyond = range(rows, len(tokenizer))
    return list(beyond) if all(token in tokenizer.added_tokens_decoder for token in beyond) else []


def _check_report(name: str, report: dict[str, Any]) -> None:
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(str(item) for item in report["mismatched_keys"])
    # Poolers and next-sentence heads are parts of the published BERT files that a masked LM does
    # not have.
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


def switch_off_dropout(config: PretrainedConfig) -> None:
    """In place: what is trained has none, and packed attention takes none."""
    for field, value in config.to_dict().items():
        if field.endswith(("dropout", "dropout_prob")) and isinstance(value, float):
            setattr(config, field, 0.0)
