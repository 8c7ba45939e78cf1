"""Regular expressions of a tokenizer.json, which run over every text, and some of them for ever.

A repeated part that is itself repeated without end, such as `(a+)+`, tries every way to cut a text
up: thirty letters take minutes. No published tokenizer has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..base.errors import model_error

MOST = 20_000  # characters of one expression; published ones have a few hundred
_TOKEN = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|\[:\^?\w+:\]|\[[^\]]*\]|[^\]\\])*\]|\(\?\#[^)]*\)|[()|]|[*+?]|\{\d*,?\d*\}|.",
    re.DOTALL,
)


def check_patterns(tokenizer: PreTrainedTokenizerBase, field: str, name: str) -> None:
    """Refuse expressions that may not end. Raise JobError (exit 4) naming `field`."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        found = getattr(backend, part, None)
        for pattern in _patterns(json.loads(found.__getstate__())) if found is not None else ():
            if len(pattern) > MOST or is_endless(pattern):
                got = f"{name}: {pattern[:80]!r} in its {part}"
                raise model_error(
                    field,
                    "a tokenizer whose regular expressions end",
                    got,
                    "Use another tokenizer.",
                )


def _patterns(value: Any) -> Iterator[str]:
    """Find every expression in a part of a tokenizer."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "Regex" and isinstance(one, str):
                yield one
            else:
                yield from _patterns(one)
    elif isinstance(value, list):
        for one in value:
            yield from _patterns(one)


def is_endless(pattern: str) -> bool:
    """Tell whether a group is repeated without end that holds something repeated without end."""
    inside = [False]  # for each open group: whether something in it is repeated without end
    closed = False  # whether the part before a sign was such a group
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
