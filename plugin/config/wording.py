"""Words of errors: what is quoted of a value, and what a person may have meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

QUOTED = 80  # characters of a value that an error quotes

# Names that people try, for a suggestion alone: too short or too vague to be taken.
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
    """Cut what is quoted of a value to what a line has room for."""
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}... ({len(text)} characters)"


def quoted(value: object) -> str:
    """Quote a value of any size in what a line has room for."""
    if isinstance(value, int) and value.bit_length() > 4 * QUOTED:  # Python writes no longer one
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
