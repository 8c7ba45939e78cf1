"""Tokenizers from a model folder or hub id, checked and matched with their model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.utils import cached_file

from ..base.errors import first_line, model_error
from ..config.families import FAMILIES, Family
from ..config.model_files import (
    check_copied,
    check_lengths,
    check_pointers,
    slow_tokenizer,
    tokenizer_class,
)
from .checks import BROKEN_FILE
from .checks.tokenizer_patterns import check_patterns
from .configuration import embedding_rows
from .decoders.mask_token import name_mask_token, role_of_mask
from .published import REGISTRY


def load_tokenizer(
    name: str,
    *,
    family: Family | None = None,
    field: str = "model_name",
    names_mask: bool = False,
    log: Callable[[str], None] | None = None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id.

    Adds the mask token and chat template of a published family if the files lack them, and a mask
    token for a causal LM, or with `names_mask` for any tokenizer; `log` learns which, and why.
    Raises JobError (exit 4) if the tokenizer does not load or, naming `field`, has no mask token,
    or one with another role.
    """
    check_copied(Path(name).expanduser(), field)
    check_lengths(Path(name).expanduser(), field)
    check_pointers(
        Path(name).expanduser(), field, ("tokenizer*", "vocab*", "special_tokens_map.json")
    )
    tokenizer = _read_tokenizer(name, family)
    check_patterns(tokenizer, field, name)
    # transformers 5 makes up a tokenizer for a folder without tokenizer files
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise model_error(
            "tokenizer_name",
            "a tokenizer with words",
            f"{name}, which has none",
            "Name one in tokenizer_name.",
        )
    if tokenizer.mask_token_id is None and family and family.mask_token in tokenizer.get_vocab():
        tokenizer.mask_token = family.mask_token
    if tokenizer.mask_token_id is None and (names_mask or (family and family.decoder)):
        line = name_mask_token(tokenizer)
        if log:
            log(f"{field}: {line}")
    if tokenizer.mask_token_id is None:
        raise model_error(
            field,
            "a tokenizer with a mask token",
            f"{name}, which has none",
            "Masked diffusion needs one.",
        )
    if role := role_of_mask(tokenizer, cast("int", tokenizer.mask_token_id)):
        raise model_error(
            field,
            "a mask token that is no end, pad or begin token",
            f"{name}: mask_token_id {tokenizer.mask_token_id}, which is its {role}",
            "Training would hide that token from the model.",
        )
    if family and not tokenizer.chat_template and _has_tokens_of(family.chat_template, tokenizer):
        tokenizer.chat_template = family.chat_template
    return tokenizer


def _read_tokenizer(name: str, family: Family | None) -> PreTrainedTokenizerBase:
    try:
        tokenizer = (
            _published_tokenizer(name)
            if family and family.name in REGISTRY
            else AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
        )
    except BROKEN_FILE as error:
        if kind := tokenizer_class(name):
            raise slow_tokenizer(name, kind, _missing_library(kind, name)) from error
        raise model_error(
            "tokenizer_name", "a tokenizer that loads", f"{name}: {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise slow_tokenizer(name, type(tokenizer).__name__)
    return tokenizer


def _published_tokenizer(name: str) -> Any:
    """Load LLaDA's or Dream's tokenizer without the code that their folders name.

    A tokenizer.json suffices; Dream's vocabulary files are Qwen2's.
    """
    has_file = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    kind = PreTrainedTokenizerFast if has_file else Qwen2Tokenizer
    return kind.from_pretrained(name)


def _missing_library(kind: str, name: str) -> str:
    """Return the library that a tokenizer class needs and this environment lacks, else empty."""
    try:
        getattr(transformers, kind).from_pretrained(name)
    except ImportError as error:
        found = re.search(r"install (\S+)", str(error))
        return found[1] if found else str(error.name or "")
    except Exception:  # any other complaint, or no such class: only its tokenizer.json is missing
        return ""
    return ""


def _has_tokens_of(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if a template's markers are tokens of this tokenizer.

    A model trained from scratch has never seen the markers of a published template.
    """
    markers, words = set(re.findall(r"<\|\w+\|>", template)), tokenizer.get_vocab()
    return bool(markers) and all(marker in words for marker in markers)


def check_pair(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Refuse a tokenizer that does not fit the model, and a length beyond the model's positions.

    Raises JobError (exit 4).
    """
    rows = embedding_rows(config)
    if len(tokenizer) > rows and not new_tokens(config, tokenizer):
        raise model_error(
            "tokenizer_name",
            f"the model's vocabulary (at most {rows} tokens)",
            f"{len(tokenizer)} tokens",
        )
    saved = getattr(config, "mask_token_id", None)
    if saved is not None:
        _check_saved_mask(config, saved, max(rows, len(tokenizer)))
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


def _check_saved_mask(config: PretrainedConfig, saved: int, rows: int) -> None:
    """Refuse a configuration's mask that has another role or no row. Raises JobError (exit 4)."""
    if role := role_of_mask(config, saved):
        expected, got = "a mask token that is no end, pad or begin token", f"also its {role}"
    elif not 0 <= saved < rows:
        expected, got = f"a mask token among the model's {rows} tokens", "no row of the table"
    else:
        return
    fix = "Training would teach nothing; correct config.json."
    raise model_error("model_name", expected, f"mask_token_id {saved}, {got}", fix)


def new_tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that were added to the model's own vocabulary.

    Empty if the tokenizer is another one, whose extra ids are not added tokens.
    """
    rows = embedding_rows(config)
    beyond = range(rows, len(tokenizer))
    return list(beyond) if all(token in tokenizer.added_tokens_decoder for token in beyond) else []
