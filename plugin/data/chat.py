"""Dialogues and texts as token ids, and which of them are answers. T tokens of a document.

An encoder's dialogue is `[CLS] turn [SEP] turn [SEP] ...`: no new tokens, and [SEP] is the end of a turn that generation waits
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..job import model_error
from .layouts import Turn


@dataclass(frozen=True)
class Encoded:
    """One dialogue or text."""

    ids: NDArray[np.int32]  # [T]
    answers: tuple[tuple[int, int], ...]  # token spans of the assistant's turns, end token included


@dataclass(frozen=True)
class _Piece:
    """A stretch of the sequence: plain text, or ids that are already tokens."""

    text: str = ""
    ids: tuple[int, ...] = ()
    answer: bool = False


class ChatFormat:
    """How one tokenizer writes dialogues. `start_id` opens a sequence, `end_id` ends a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        end_id = _first(tokenizer.sep_token_id, tokenizer.eos_token_id)
        mask_id = _first(tokenizer.mask_token_id)
        if end_id is None or mask_id is None:
            raise model_error(
                "tokenizer_name", "a tokenizer with a mask and an end token ([SEP] or end of sequence)", "one without"
            )
        self.tokenizer = tokenizer
        self.start_id = _first(tokenizer.cls_token_id, tokenizer.bos_token_id)
        self.end_id, self.mask_id = end_id, mask_id
        self.pad_id = _first(tokenizer.pad_token_id, end_id) or 0

    def encode(self, dialogues: Sequence[Sequence[Turn]]) -> list[Encoded]:
        """Encode many dialogues in one tokenizer call. A dialogue of one `text` turn is a text: no answers."""
        return self._tokenize([self._pieces(turns) for turns in dialogues])

    def prompt(self, turns: Sequence[Turn]) -> NDArray[np.int32]:
        """Ids up to where the assistant's next turn begins."""
        return self._tokenize([self._pieces(turns)])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """The answer's text: everything before the first end token."""
        kept = list(ids)
        if self.end_id in kept:
            kept = kept[: kept.index(self.end_id)]
        return self.text(kept).strip()

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def frame(self, ids: Sequence[int], hole: str = "░") -> str:
        """A half-revealed canvas as text: every masked token is one `hole`, end tokens are left out."""
        groups: list[tuple[bool, list[int]]] = []
        for token in ids:
            masked = token == self.mask_id
            if not groups or groups[-1][0] != masked:
                groups.append((masked, []))
            groups[-1][1].append(token)
        parts = [hole * len(run) if masked else self.text(run) for masked, run in groups]
        return "".join(parts)

    def _pieces(self, turns: Sequence[Turn]) -> list[_Piece]:
        pieces = [_Piece(ids=(self.start_id,))] if self.start_id is not None else []
        for turn in turns:
            pieces.append(_Piece(text=turn.text, answer=turn.role == "assistant"))
            pieces.append(_Piece(ids=(self.end_id,), answer=turn.role == "assistant"))
        return pieces

    def _tokenize(self, dialogues: Sequence[Sequence[_Piece]]) -> list[Encoded]:
        texts = [piece.text for pieces in dialogues for piece in pieces if piece.text]
        # A row's text is data: "[MASK]" in it must not become the mask token.
        batch = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True) if texts else {"input_ids": []}
        tokens = iter(batch["input_ids"])
        return [self._join(pieces, [next(tokens) if piece.text else piece.ids for piece in pieces]) for pieces in dialogues]

    @staticmethod
    def _join(pieces: Sequence[_Piece], ids: Sequence[Sequence[int]]) -> Encoded:
        answers: list[tuple[int, int]] = []
        end = 0
        for piece, part in zip(pieces, ids, strict=True):
            start, end = end, end + len(part)
            if piece.answer and answers and answers[-1][1] == start:
                answers[-1] = (answers[-1][0], end)
            elif piece.answer:
                answers.append((start, end))
        flat = [token for part in ids for token in part]
        return Encoded(np.array(flat, dtype=np.int32), tuple(answers))


def _first(*ids: Any) -> int | None:
    return next((token for token in ids if isinstance(token, int)), None)


def supervision(encoded: Encoded, *, answers_only: bool, turns: str) -> NDArray[np.bool_]:
    """Which tokens are learned, bool[T]: the last answer or all; without `answers_only`, and in a text, all but the first."""
    learned = np.zeros(encoded.ids.size, dtype=bool)
    if not answers_only or not encoded.answers:
        learned[1:] = True
        return learned
    for start, end in encoded.answers[-1:] if turns == "last" else encoded.answers:
        learned[start:end] = True
    return learned


def filled_lengths(lengths: Sequence[int], prompts: Sequence[int], *, policy: str, block: int, max_length: int) -> list[int]:
    """Tokens of each document of a step once end tokens are added: how a masked model learns where to stop.

    single: none beyond its own end token. block: the answer becomes a multiple of `block`. batch: as long as the step's longest.
    """
    if policy == "single":
        return list(lengths)
    if policy == "batch":
        return [max(lengths)] * len(lengths)
    whole = [prompt - (prompt - length) // block * block for length, prompt in zip(lengths, prompts, strict=True)]
    return [max(length, min(filled, max_length)) for length, filled in zip(lengths, whole, strict=True)]


def fill_with_end(
    ids: NDArray[np.int32], supervised: NDArray[np.bool_], length: int, end_id: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Extend a document to `length` tokens with supervised end tokens. A cut document, not ending in one, stays as it is."""
    extra = length - ids.size
    if extra <= 0 or ids[-1] != end_id:
        return ids, supervised
    return (
        np.concatenate([ids, np.full(extra, end_id, dtype=np.int32)]),
        np.concatenate([supervised, np.ones(extra, dtype=bool)]),
    )
