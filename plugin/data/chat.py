"""Dialogues and texts as token ids, and which of them are answers. T tokens of a document.

A tokenizer's chat template writes its dialogues; one without is given the encoder's, see encoder_template.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..job import model_error
from .encoder_template import ends_of, set_encoder_template
from .layouts import Turn

_CONTENT = "\ue000{}\ue001"  # private-use characters: no template and no text holds them


@dataclass(frozen=True)
class Encoded:
    """One dialogue or text."""

    ids: NDArray[np.int32]  # [T]
    answers: tuple[tuple[int, int], ...]  # token spans of the assistant's turns, end token included


class ChatFormat:
    """How one tokenizer writes dialogues: what stands before, between and after the turns' texts.

    `start_id` opens a sequence; `end_id` ends an answer; `fill_id` fills the space behind it. Either of the last two says stop.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        start, end = ends_of(tokenizer)
        self.start_id: int | None = getattr(tokenizer, f"{start}_token_id") if start else None
        fill_id: int | None = getattr(tokenizer, f"{end}_token_id") if end else None
        mask_id = _first(tokenizer.mask_token_id)
        if fill_id is None or mask_id is None:
            raise model_error("tokenizer_name", "a mask token and an end token ([SEP] or end of sequence)", "one without")
        self.fill_id, self.mask_id = fill_id, mask_id
        self.pad_id = _first(tokenizer.pad_token_id, fill_id) or 0
        set_encoder_template(tokenizer)
        self._frame_of = lru_cache(maxsize=256)(self._render)
        after_answer = self._frame_of(("user", "assistant"), False)[-1]
        if not after_answer:
            raise model_error(
                "tokenizer_name", "a chat template that ends the assistant's turn with a token", "one that does not"
            )
        self.end_id = after_answer[0]

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.end_id, self.fill_id)))

    def encode(self, dialogues: Sequence[Sequence[Turn]]) -> list[Encoded]:
        """Encode many dialogues in one tokenizer call. A dialogue of one `text` turn is a text: no answers."""
        texts = [turn.text for turns in dialogues for turn in turns]
        # A row's text is data: "[MASK]" in it must not become the mask token.
        batch = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True) if texts else {"input_ids": []}
        tokens = iter(batch["input_ids"])
        return [self._join(turns, [next(tokens) for _ in turns]) for turns in dialogues]

    def prompt(self, turns: Sequence[Turn]) -> NDArray[np.int32]:
        """Ids up to where the assistant's next turn begins."""
        pieces = self._frame_of(tuple(turn.role for turn in turns), True)
        batch = self.tokenizer([turn.text for turn in turns], add_special_tokens=False, split_special_tokens=True)
        ids = list(pieces[0])
        for text, after in zip(batch["input_ids"], pieces[1:], strict=True):
            ids += [*text, *after]
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer's text: everything before the first end token."""
        stops = [place for place, token in enumerate(ids) if token in self.end_ids]
        return self.text(list(ids)[: stops[0]] if stops else ids).strip()

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
        return "".join(hole * len(run) if masked else self.text(run) for masked, run in groups)

    def _join(self, turns: Sequence[Turn], texts: Sequence[Sequence[int]]) -> Encoded:
        if turns[0].role == "text":
            opening = [self.start_id] if self.start_id is not None else []
            return Encoded(np.array([*opening, *texts[0], self.fill_id], dtype=np.int32), ())
        pieces = self._frame_of(tuple(turn.role for turn in turns), False)
        ids = list(pieces[0])
        answers: list[tuple[int, int]] = []
        for turn, text, after in zip(turns, texts, pieces[1:], strict=True):
            start = len(ids)
            ids += text
            if turn.role == "assistant":
                answers.append((start, len(ids) + 1))  # the first token after an answer is its end token
            ids += after
        # What a template writes after the last end token (ChatML's line break) belongs to no turn.
        return Encoded(np.array(ids[: answers[-1][1]] if answers else ids, dtype=np.int32), tuple(answers))

    def _render(self, roles: tuple[str, ...], generation: bool) -> list[list[int]]:
        """Ids of the template's own text before, between and after the contents; it depends on the roles alone."""
        messages = [{"role": role, "content": _CONTENT.format(place)} for place, role in enumerate(roles)]
        try:
            rest = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
            pieces: list[str] = []
            for place in range(len(roles)):
                before, rest = rest.split(_CONTENT.format(place), 1)
                pieces.append(before)
        except Exception as error:  # a template is foreign code and may raise anything
            reason = str(error).split("\n")[0]
            raise model_error("tokenizer_name", f"a chat template that takes {', '.join(roles)}", reason) from error
        return [list(self.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in (*pieces, rest)]


def _first(*ids: Any) -> int | None:
    return next((token for token in ids if isinstance(token, int)), None)


def supervision(encoded: Encoded, *, answers_only: bool, turns: str) -> NDArray[np.bool_]:
    """Which tokens are learned, bool[T]: the last answer or all; without `answers_only`, and in a text, all but the first.

    A document's first token is never masked: no family predicts it.
    """
    learned = np.zeros(encoded.ids.size, dtype=bool)
    if not answers_only or not encoded.answers:
        learned[1:] = True
        return learned
    for start, end in encoded.answers if turns == "all" else encoded.answers[-1:]:
        learned[start:end] = True
    return learned


def random_prefix(encoded: Encoded, uniform: float) -> Encoded:
    """A dialogue cut after one of its answers, `uniform` in [0, 1) choosing which: LLaDA's treatment of n-turn dialogues."""
    if not encoded.answers:
        return encoded
    kept = encoded.answers[: int(uniform * len(encoded.answers)) + 1]
    return Encoded(encoded.ids[: kept[-1][1]], kept)


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
    ids: NDArray[np.int32], supervised: NDArray[np.bool_], length: int, end_ids: Sequence[int], fill_id: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Extend a document to `length` tokens with supervised fill. A cut document, not ending in an end token, stays as it is."""
    extra = length - ids.size
    if extra <= 0 or ids[-1] not in end_ids:
        return ids, supervised
    return (
        np.concatenate([ids, np.full(extra, fill_id, dtype=np.int32)]),
        np.concatenate([supervised, np.ones(extra, dtype=bool)]),
    )
