"""Words of errors: the accepted values, the quoted value, and what a user may have meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from .params import SCHEMA

QUOTED = 80  # characters of a value that an error quotes

# Descriptions of texts, where a pattern would not help a reader.
_TEXTS = {
    "loss_weight_type": "cart[geo_p:P] with 0 < P <= 1, scheduler or uniform",
    "gpu_ids": '"auto" or positions such as 0,2',
    "block_schedule": "pairs of tokens and block size, such as [[0, 4], [1000000, 16]], or nothing",
    "adaptor_name": "a name of letters, digits, '.', '_' and '-' (1 to 64, first a letter or digit)",
}

# Names that people try; only for a suggestion, being too short or too vague to accept.
NICKNAMES = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "epochs": "num_train_epochs",
    "steps": "train_steps",
    "model": "model_name",
    "base": "model_name",
    "data": "dataset_name",
    "dataset": "dataset_name",
    "method": "training_method",
    "out": "run_dir",
    "output": "run_dir",
    "device": "train_device",
    "wandb": "log_to_wandb",
    "qlora": "load_in_4bit",
}


def cut(text: str) -> str:
    """Cut a quoted text to what a line has room for."""
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}... ({len(text)} characters)"


def quoted(value: object) -> str:
    """Quote a value of any size within what a line has room for."""
    if (
        isinstance(value, int) and value.bit_length() > 4 * QUOTED
    ):  # Python refuses to write a longer one
        return f"a number of about {round(value.bit_length() * math.log10(2))} digits"
    if not isinstance(value, str):
        return cut(repr(value))
    shown = repr(value[:QUOTED])  # which may be six times as long
    short = len(value) <= QUOTED and len(shown) <= 2 * QUOTED
    return shown if short else f"{shown[:QUOTED]}... ({len(value)} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the closest of `known`, or nothing."""
    names, asked = list(known), word[:QUOTED].replace("-", "_").lower()
    nickname = [NICKNAMES[asked]] if NICKNAMES.get(asked) in names else []
    part = [name for name in names if asked in name.split("_")]
    close = difflib.get_close_matches(word[:QUOTED], names, n=1, cutoff=0.6)
    found = next(iter((*nickname, *close, *part)), "")
    return f"Did you mean {found}?" if found else ""


def expected(name: str) -> str:
    """Describe the values of a parameter: `an integer >= 1`, `one of bert, dream, llada`."""
    return " or ".join(_words(name, kind) for kind in SCHEMA[name].get("anyOf", [SCHEMA[name]]))


def _words(name: str, kind: Mapping[str, Any]) -> str:
    if "const" in kind:
        return repr(kind["const"])
    if "enum" in kind:
        return "one of " + ", ".join(kind["enum"])
    if kind["type"] == "boolean":
        return "true or false"
    if kind["type"] == "string":
        return _TEXTS.get(name, "text")
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(
        f"{sign} {_bound(kind[key])}" for key, sign in signs.items() if key in kind
    )
    return f"{'an integer' if kind['type'] == 'integer' else 'a number'} {bounds}".rstrip()


def _bound(number: float) -> str:
    short = f"{number:g}"
    return (
        short
        if float(short) == number and "e" not in short
        else f"{number:.0f}"
        if number == int(number)
        else short
    )


def form_choices(name: str) -> list[str]:
    """Return the words that a form offers for a parameter; empty for numbers and free text."""
    form = SCHEMA[name]["form"]
    if not isinstance(form, dict) or not {"enum", "type"} & set(form):
        return choices(name)
    return form.get("enum", [])  # a form's own type is text


def choices(name: str) -> list[str]:
    """Return the words that a parameter accepts; empty for numbers and free text."""
    kinds = SCHEMA[name].get("anyOf", [SCHEMA[name]])
    return [
        str(word)
        for kind in kinds
        for word in kind.get("enum", [kind["const"]] if "const" in kind else [])
    ]
