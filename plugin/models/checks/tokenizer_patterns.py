"""Checks of the regular expressions in a tokenizer.json, which run over every text.

Matching may take exponential time if a repeated group repeats something without bound, as in
`(a+)+`: thirty letters take minutes. No published tokenizer has such an expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...base.errors import model_error

MAX_LENGTH = 20_000  # characters of one expression; published ones have a few hundred
_TOKEN = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|\[:\^?\w+:\]|\[[^\]]*\]|[^\]\\])*\]|\(\?\#[^)]*\)|[()|]|[*+?]|\{\d*,?\d*\}|.",
    re.DOTALL,
)


def check_patterns(tokenizer: PreTrainedTokenizerBase, field: str, name: str) -> None:
    """Refuse expressions whose matching may not terminate.

    Raises JobError (exit 4) naming `field`.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        found = getattr(backend, part, None)
        for pattern in _patterns(json.loads(found.__getstate__())) if found is not None else ():
            if len(pattern) > MAX_LENGTH or is_endless(pattern):
                got = f"{name}: {pattern[:80]!r} in its {part}"
                raise model_error(
                    field,
                    "a tokenizer whose regular expressions terminate",
                    got,
                    "Use another tokenizer.",
                )


def _patterns(value: Any) -> Iterator[str]:
    """Yield every expression in a part of a tokenizer."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "Regex" and isinstance(item, str):
                yield item
            else:
                yield from _patterns(item)
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)


def is_endless(pattern: str) -> bool:
    """Return True if an unbounded repetition contains another one."""
    inside = [False]  # for each open group: does it contain an unbounded repetition?
    closed = False  # was the item before this sign such a group?
    for token in _TOKEN.findall(pattern):
        if token == "(":
            inside.append(False)
            closed = False
        elif token == ")":
            closed = inside.pop() if len(inside) > 1 else False
            inside[-1] = inside[-1] or closed
        elif token in ("*", "+") or re.fullmatch(r"\{\d*,\}|\{\d*,?(\d{3,})\}", token):
            if closed:
                return True
            inside[-1] = True
            closed = False
        elif token != "?":
            closed = False
    return False
