"""Checks of an adapter_config.json: bounded sizes, and layer names without patterns.

peft matches a string in target_modules, and the keys of rank_pattern and alpha_pattern, as regular
expressions against every layer's name, without a time limit. Adapters, ours included, are saved
with lists of names. A string is accepted here if it is a single name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...base.errors import model_error
from ...config.model_files import read_json

MAX_RANK = 16_384  # as the parameter lora_r
_NAME = re.compile(r"[\w.-]{1,500}")
_NAME_FIELDS = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_pattern",
    "target_parameters",
)
_PATTERN_FIELDS = ("rank_pattern", "alpha_pattern")


def check_adapter_config(file: Path) -> None:
    """Refuse fields that would run or grow without bound.

    Raises JobError (exit 4) naming adapter.
    """
    for name, wanted, got in _wrong_fields(read_json(file)):
        shown = repr(got)
        fix = "Write the names of the layers as a list." if wanted.startswith("names") else ""
        raise model_error("adapter", f"{name} of {wanted}", f"{file}: {shown[:80]}", fix)


def _wrong_fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Yield (field, expected, value) of each field that is refused."""
    if config.get("peft_type") != "LORA":
        yield "a peft_type", "LORA", config.get("peft_type")
    numbers = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for name in _PATTERN_FIELDS:
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(map(_is_name, pattern)):
            yield name, "names of layers without wildcards", pattern
            return
        numbers |= {f"{name} {layer}": value for layer, value in pattern.items()}
    for name, value in numbers.items():
        if value is not None and not (
            isinstance(value, int | float) and 0 < value <= MAX_RANK * 64
        ):
            yield name, "a number above 0 and not huge", value
    ranks = [
        value for name, value in numbers.items() if name == "r" or name.startswith("rank_pattern")
    ]
    for value in ranks:
        if value is not None and not (isinstance(value, int) and value <= MAX_RANK):
            yield "r", f"at most {MAX_RANK}", value
    for name in _NAME_FIELDS:
        value = config.get(name)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(map(_is_name, names)):
            yield name, "names of layers without wildcards", value
    layers = config.get("layers_to_transform")
    chosen = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(
        isinstance(layer, int) and 0 <= layer < 1 << 20 for layer in chosen
    ):
        yield "layers_to_transform", "numbers of layers", layers


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))
