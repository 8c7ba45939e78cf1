"""Dialogues and texts as token ids, with the spans of their answers. T tokens of a document.

A tokenizer's chat template writes its dialogues; templates/encoder.py has one for a tokenizer that
has no template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..base.errors import model_error
from .templates.chat_template import ChatTemplate, Refused, Written, added_tokens
from .templates.encoder import encoder_template, ends_of
from .templates.escapes import Escapes, function_tokens, token_id
from .turns import Turn, escaped

# Marks between the turns of a chat that another program rendered into text.
_RENDERED = re.compile(
    r"<\|(im_start|im_end|start_header_id|eot_id|user|assistant|system)\|>"
    r"|<(start|end)_of_turn>|\[/?INST\]|<<SYS>>"
    r"|^#{2,3} ?(Instruction|Response|Human|Assistant|User|Input)s?:",
    re.MULTILINE,
)
# Two patterns, because a single pattern would try every pair of lines.
_ASKS = re.compile(r"^(Human|USER|User): ", re.MULTILINE)
_ANSWERS = re.compile(r"^(Assistant|ASSISTANT): ", re.MULTILINE)
# The last answer; the last and those marked as not to be learned; every answer.
Find = Literal["last", "marked", "all"]
RENDERED = (
    "text that looks like an already rendered chat: its marks, and prompts in a plain text, "
    "are trained as text"
)
CHANGED = "text that the chat template changes or omits: the template's output is trained"


Flat = tuple[NDArray[np.uint32], NDArray[np.int64]]  # ids [N] of D texts, offsets [D + 1]


@dataclass(frozen=True)
class Encoded:
    """One dialogue or text. A span is (first token, end), end token included."""

    ids: NDArray[np.int32]  # [T]
    answers: tuple[tuple[int, int], ...]  # spans of the answers to be learned
    withheld: tuple[tuple[int, int], ...] = ()  # spans of answers marked as not to be learned
    remarks: tuple[str, ...] = ()  # news of this row for a person, each a phrase to count by


@dataclass
class _Pieces:
    """A dialogue before it is tokenised: texts mixed with ids, and the answers among them."""

    items: list[str | list[int]] = field(default_factory=list)
    answers: dict[int, tuple[int, int]] = field(default_factory=dict)  # turn -> (first item, end)
    exact: bool = True  # every turn's text occurs unchanged


class ChatFormat:
    """A tokenizer's notation of dialogues.

    It is that of its chat template, or the encoder's `[CLS] turn [SEP] turn [SEP] ...`. `start_id`
    opens a sequence; `end_id` ends an answer; `fill_id` fills the space behind it. Generation stops
    at either of the last two. `moment` is the time that a template may write, the same for the full
    run. Raises JobError (exit 4) for a tokenizer or template that cannot be served.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, moment: datetime | None = None):
        self.tokenizer = tokenizer
        start, end = ends_of(tokenizer)
        self.start_id: int | None = getattr(tokenizer, f"{start}_token_id") if start else None
        fill_id: int | None = getattr(tokenizer, f"{end}_token_id") if end else None
        mask_id = _first(tokenizer.mask_token_id)
        if fill_id is None or mask_id is None:
            expected = "a mask token and an end token ([SEP] or end of sequence)"
            raise model_error("tokenizer_name", expected, "a tokenizer without one of them")
        self.fill_id, self.mask_id = fill_id, mask_id
        self.pad_id = _first(tokenizer.pad_token_id, fill_id) or 0
        encoder = encoder_template(start, end)
        if not tokenizer.chat_template:
            # Saved with the tokenizer, it records the prompts that the model was trained on.
            tokenizer.chat_template = encoder
        # The encoder's notation is known, so it needs no rendering.
        by_template = tokenizer.chat_template != encoder
        self._template = ChatTemplate(tokenizer, moment or datetime.now()) if by_template else None
        own = self._template.own_tokens if self._template else set[str]()
        self._escapes = Escapes(tokenizer, function_tokens(tokenizer) | own)
        self.end_id = token_id(tokenizer, self._template.end) if self._template else fill_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the ids at which an answer stops."""
        return tuple(dict.fromkeys((self.end_id, self.fill_id)))

    @property
    def opening(self) -> list[int]:
        """Return the ids that open a document: one, or none."""
        return [] if self.start_id is None else [self.start_id]

    @property
    def ordinary_ids(self) -> NDArray[np.int32]:
        """Return the ids of the vocabulary, ascending, special tokens left out."""
        added = self.tokenizer.added_tokens_decoder
        special = {token for token, one in added.items() if one.special}
        known = set(self.tokenizer.get_vocab().values())
        return np.array(sorted(known - special - set(self.tokenizer.all_special_ids)), np.int32)

    @property
    def moment(self) -> datetime | None:
        """Return the time that the template writes; None if it writes none."""
        return self._template.moment if self._template else None

    def encode(
        self, dialogues: Sequence[Sequence[Turn]], *, find: Find = "all"
    ) -> list[Encoded | str]:
        """Encode dialogues in one tokenizer call.

        Returns, for a dialogue that the template refuses, the reason as a string. A dialogue of one
        `text` turn is a plain text without answers. `find` limits the search to the answers that
        the caller needs: each search costs a rendering, and in the output of some templates earlier
        answers cannot be found.
        """
        hidden = [[escaped(turn, self._escapes.hide) for turn in turns] for turns in dialogues]
        plans = self._plans(hidden, find)
        texts = [
            item
            for plan in plans
            if isinstance(plan, _Pieces)
            for item in plan.items
            if isinstance(item, str)
        ]
        tokens = iter(self._escapes.tokenize(texts))
        found: list[Encoded | str] = []
        for turns, plan in zip(dialogues, plans, strict=True):
            if isinstance(plan, str):
                found.append(plan)
            else:
                pieces = [next(tokens) if isinstance(item, str) else item for item in plan.items]
                found.append(self._join(turns, plan, pieces))
        return found

    def prompt(self, turns: Sequence[Turn]) -> NDArray[np.int32]:
        """Return the ids up to the start of the assistant's next turn.

        Raises JobError (exit 4) if the template refuses the turns.
        """
        hidden = [escaped(turn, self._escapes.hide) for turn in turns]
        if self._template is None:
            items = self._encoder_pieces(hidden).items
        else:
            try:
                items = [self._template.prompt(hidden)]
            except Refused as refused:
                expected = "a chat template that accepts this dialogue"
                raise model_error("tokenizer_name", expected, str(refused)) from refused
        tokens = iter(self._escapes.tokenize([item for item in items if isinstance(item, str)]))
        pieces = [next(tokens) if isinstance(item, str) else item for item in items]
        return np.array([token for piece in pieces for token in piece], np.int32)

    def encode_texts(self, texts: Sequence[str], flat: Flat) -> list[Encoded]:
        """Open and end texts whose ids are known; `flat` are those of `plain_ids`, end to end."""
        opening = np.array(self.opening, np.int32)
        end = np.array([self.fill_id], np.int32)
        ids, offsets = flat
        parts = np.split(ids.astype(np.int32), offsets[1:-1])
        return [
            Encoded(np.concatenate([opening, part, end]), (), (), tuple(self._text_remarks(text)))
            for text, part in zip(texts, parts, strict=True)
        ]

    def _text_remarks(self, text: str) -> list[str]:
        if not self.spells_token(text):  # which nearly no text does
            return [RENDERED] if _looks_rendered(text) else []
        return self._remarks([Turn("text", text)], True)

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts alone: nothing opens or ends them, a spelled token is text."""
        return self._escapes.tokenize([self._escapes.hide(text) for text in texts])

    def spells_token(self, text: str) -> bool:
        """Tell whether a text spells a token that has a function, or a character that hides one."""
        return self._escapes.hides(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer up to its first end token."""
        return self.text(self.until_end(ids)).strip()

    def until_end(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids before the first end token."""
        return ids[: next((n for n, token in enumerate(ids) if token in self.end_ids), len(ids))]

    def text(self, ids: Sequence[int]) -> str:
        """Decode ids without tokens that have a function; a token that a user added is text."""
        kept = [token for token in ids if token not in self._escapes.ids]
        return str(self.tokenizer.decode(kept))

    def shown(self, ids: Sequence[int]) -> str:
        """Decode ids for a person: an added token in ⟦ ⟧, so that it differs from its spelling."""
        added = added_tokens(self.tokenizer)
        groups: list[tuple[bool, list[int]]] = []
        for token in ids:
            if not groups or groups[-1][0] or token in added:
                groups.append((token in added, []))
            groups[-1][1].append(token)
        return "".join(
            f"⟦{added[run[0]]}⟧" if alone else str(self.tokenizer.decode(run))
            for alone, run in groups
        )

    def frame(self, ids: Sequence[int], hole: str = "░") -> str:
        """Decode a half-revealed canvas: `hole` for each masked token, no end tokens."""
        groups: list[tuple[bool, list[int]]] = []
        for token in ids:
            masked = token == self.mask_id
            if not groups or groups[-1][0] != masked:
                groups.append((masked, []))
            groups[-1][1].append(token)
        return "".join(hole * len(run) if masked else self.text(run) for masked, run in groups)

    def _plans(self, dialogues: Sequence[Sequence[Turn]], find: Find) -> list[_Pieces | str]:
        plans: dict[int, _Pieces | str] = {}
        asked: dict[int, tuple[Sequence[Turn], list[int]]] = {}
        for number, turns in enumerate(dialogues):
            if turns[0].role == "text":
                plans[number] = _Pieces([*self._opening(), turns[0].text, [self.fill_id]])
            elif self._template is None:
                plans[number] = self._encoder_pieces(turns)
            else:
                asked[number] = turns, _places(turns, find)
        written = self._template.write([*asked.values()]) if self._template else []
        for (number, (_, places)), result in zip(asked.items(), written, strict=True):
            if isinstance(result, Refused):
                plans[number] = str(result)
            else:
                plans[number] = _template_pieces(result, places)
        return [plans[number] for number in range(len(dialogues))]

    def _encoder_pieces(self, turns: Sequence[Turn]) -> _Pieces:
        pieces = _Pieces(self._opening())
        for place, turn in enumerate(turns):
            pieces.items += [turn.with_thought, [self.fill_id]]
            if turn.role == "assistant":
                pieces.answers[place] = (len(pieces.items) - 2, len(pieces.items))
        return pieces

    def _opening(self) -> list[str | list[int]]:
        return [self.opening] if self.opening else []

    def _join(
        self, turns: Sequence[Turn], plan: _Pieces, pieces: Sequence[Sequence[int]]
    ) -> Encoded:
        ends = [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]
        spans = {place: (ends[first], ends[end]) for place, (first, end) in plan.answers.items()}
        learned = tuple(span for place, span in spans.items() if turns[place].learn)
        withheld = tuple(span for place, span in spans.items() if not turns[place].learn)
        ids = np.array([token for piece in pieces for token in piece], dtype=np.int32)
        return Encoded(ids, learned, withheld, tuple(self._remarks(turns, plan.exact)))

    def _remarks(self, turns: Sequence[Turn], exact: bool) -> list[str]:
        texts = [text for turn in turns for text in (turn.text, turn.thought)]
        spelled = sorted(set[str]().union(*map(self._escapes.spelled, texts)))
        remarks = [f"{token} in a text: it is read as text, not as the token" for token in spelled]
        if any(map(_looks_rendered, texts)):
            remarks.append(RENDERED)
        return remarks if exact else [*remarks, CHANGED]


def _looks_rendered(text: str) -> bool:
    asks = _ASKS.search(text)
    return bool(_RENDERED.search(text) or (asks and _ANSWERS.search(text, asks.end())))


def _places(turns: Sequence[Turn], find: Find) -> list[int]:
    """Choose the answers to search for, by their places among the turns."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if find == "all":
        return places
    marked = {place for place in places if find == "marked" and not turns[place].learn}
    return [place for place in places if place == places[-1] or place in marked]


def _template_pieces(written: Written, places: Sequence[int]) -> _Pieces:
    pieces, at = _Pieces(exact=written.exact), 0
    for place, (start, end) in zip(places, written.answers, strict=True):
        pieces.items += [written.text[at:start], written.text[start:end]]
        pieces.answers[place] = (len(pieces.items) - 1, len(pieces.items))
        at = end
    # Text after the last end token (ChatML's line break) belongs to no turn.
    if not places:
        pieces.items.append(written.text)
    return pieces


def _first(*ids: object) -> int | None:
    return next((token for token in ids if isinstance(token, int)), None)


def supervision(encoded: Encoded, *, answers_only: bool, turns: str) -> NDArray[np.bool_]:
    """Mark the tokens to be learned. Returns bool[T].

    With `answers_only` these are the last answer, or every answer for `turns` all. Without it, and
    in a plain text, they are all tokens but the first: no family predicts a document's first token,
    so it is never masked.
    """
    learned = np.zeros(encoded.ids.size, dtype=bool)
    if not answers_only or not encoded.answers:
        learned[1:] = True
        for start, end in encoded.withheld:
            learned[start:end] = False
        return learned
    for start, end in encoded.answers if turns == "all" else encoded.answers[-1:]:
        learned[start:end] = True
    return learned
