"""Texts and JSON values for files, forms and configurations."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

# Spellings with a meaning somewhere: tokens, template marks, private characters, line ends.
PIECES = (
    *(
        "[MASK]",
        "[SEP]",
        "[CLS]",
        "[PAD]",
        "[UNK]",
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
        "### Response:",
    ),
    *(
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\u2028",
        "\x85",
        "\x0b",
        "\t",
        " ",
        "\0",
        "\x1b[31m",
        "\ufeff",
        "\u202e",
        "\u0301",
    ),
    *(
        "\ud800",
        "\udc00",
        "\ue0000\ue001",
        "\ue002",
        "\U0010f000",
        "\U0010f001",
        "\U0010fffd",
        "é",
        "🦆",
        "ﬁ",
        "İ",
    ),
    *(
        '"',
        "'",
        ",",
        "{",
        "}",
        "[",
        "]",
        "{{",
        "{%",
        "\\",
        "|",
        "+",
        "=",
        "-",
        "null",
        "nan",
        "NaN",
        "true",
        "0",
        "1e999",
    ),
    *("a", "The sky", "is blue.", "Why?", "user", "assistant", "word " * 40),
)


@cache
def texts(most: int = 6) -> st.SearchStrategy[str]:
    """Make plain texts, texts of meaningful spellings, and texts of any characters."""
    plain = st.sampled_from(
        ("Why is the sky blue?", "Because of its air.", "4", "a", "one two three", "", " ")
    )
    pieces = st.lists(st.sampled_from(PIECES), max_size=most).map("".join)
    return plain | pieces | st.text(st.characters(), max_size=4 * most)


def numbers() -> st.SearchStrategy[Any]:
    odd = (0, -0.0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 1e308, 5e-324, 0.1)
    return st.sampled_from(odd) | st.integers() | st.floats(allow_nan=True)


@cache
def values(leaves: int = 8) -> st.SearchStrategy[Any]:
    """Make JSON values of any kind."""
    simple = st.none() | st.booleans() | numbers() | texts()
    keys = st.sampled_from(("role", "content", "value", "type", "text", "from")) | texts(2)
    return st.recursive(
        simple,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=leaves,
    )
