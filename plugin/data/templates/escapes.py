"""Tokens spelled in a row's text: `[MASK]` in a text is six characters, not the mask token.

Only tokens with a function are kept out of the data: mask, padding, start, end, and those that the
chat template writes. A token that a user added, such as `<think>`, remains a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

# A spelled token passes through a chat template as one character of a private plane: no template
# mistakes it for a token or a space.
_FIRST, _LAST = 0x10F000, 0x10FFFD
FUNCTIONS = ("mask", "pad", "cls", "sep", "bos", "eos", "unk")


def function_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """List the tokens to which the tokenizer gives a function."""
    named = (getattr(tokenizer, f"{name}_token") for name in FUNCTIONS)
    return {str(token) for token in named if token}


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a token."""
    return cast("int", tokenizer.convert_tokens_to_ids(token))


class Escapes:
    """Hides the tokens that a text spells, and tokenises them as plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]):
        self._tokenizer = tokenizer
        self.tokens = frozenset(tokens)
        self.ids = frozenset(token_id(tokenizer, token) for token in self.tokens)
        longest_first = sorted(map(re.escape, self.tokens), key=len, reverse=True)
        self._spelled = re.compile("|".join((*longest_first, f"[{chr(_FIRST)}-{chr(_LAST)}]")))
        self._hidden = re.compile(f"([{chr(_FIRST)}-{chr(_LAST)}])")
        self._number: dict[str, int] = {}  # a spelling -> its character, from _FIRST
        self._plain: list[list[int]] = []  # ids of each spelling as text

    def hide(self, text: str) -> str:
        """Replace every token that the text spells by a private character."""
        return self._spelled.sub(lambda found: chr(_FIRST + self._place(found[0])), text)

    def hides(self, text: str) -> bool:
        """Tell whether `hide` changes a text; many times faster than the pattern."""
        if any(token in text for token in self.tokens):
            return True
        return not text.isascii() and self._hidden.search(text) is not None

    def spelled(self, text: str) -> set[str]:
        """Find the tokens that a text spells."""
        return set(self._spelled.findall(text)) & self.tokens

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts of `hide` in one call; hidden tokens become plain text."""
        split = [self._hidden.split(text) for text in texts]
        parts = [part for pieces in split for part in pieces[::2] if part]
        found = iter(self._tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else ())
        answers: list[list[int]] = []
        for pieces in split:
            ids: list[int] = []
            for place, part in enumerate(pieces):
                if place % 2:
                    ids += self._plain[ord(part) - _FIRST]
                elif part:
                    ids += next(found)
            answers.append(ids)
        return answers

    def _place(self, spelling: str) -> int:
        if spelling not in self._number:
            self._number[spelling] = len(self._plain)
            self._plain.append(self._as_text(spelling))
        return self._number[spelling]

    def _as_text(self, spelling: str) -> list[int]:
        (ids,) = self._split([spelling])
        if self.ids.isdisjoint(ids):
            return ids
        # The tokenizer never splits an added token that is not special. Without its first
        # character, the spelling is no such token.
        return [token for piece in self._split([spelling[:1], spelling[1:]]) for token in piece]

    def _split(self, texts: list[str]) -> list[list[int]]:
        found = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        return cast("list[list[int]]", found["input_ids"])
