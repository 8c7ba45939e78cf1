"""Dialogues and texts as token ids, and which of them are answers. T tokens of a document.

A tokenizer's chat template writes its dialogues; one without is given the encoder's, see
encoder_template.py.
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
from .templates.chat_template import Refused, Template, Written, added_tokens
from .templates.encoder import encoder_template, ends_of
from .templates.escapes import Escapes, function_tokens, token_id
from .turns import Turn, escaped

# Marks between the turns of chats that some program rendered into text.
_RENDERED = re.compile(
    r"<\|(im_start|im_end|start_header_id|eot_id|user|assistant|system)\|>|<(start|end)_of_turn>|\[/?INST\]|<<SYS>>"
    r"|^#{2,3} ?(Instruction|Response|Human|Assistant|User|Input)s?:",
    re.MULTILINE,
)
# Two searches, since one pattern for both would try every pair of lines.
_ASKS, _ANSWERS = (
    re.compile(r"^(Human|USER|User): ", re.MULTILINE),
    re.compile(r"^(Assistant|ASSISTANT): ", re.MULTILINE),
)
Find = Literal[
    "last", "marked", "all"
]  # the last answer; it and those marked as not to be learned; every answer
RENDERED = "text that looks like a chat rendered already: its marks, and prompts in a plain text, are trained as text"
CHANGED = "text that the chat template changes or leaves out: what it writes is trained"


@dataclass(frozen=True)
class Encoded:
    """One dialogue or text."""

    ids: NDArray[np.int32]  # [T]
    answers: tuple[
        tuple[int, int], ...
    ]  # token spans of the answers to be learned, end token included
    withheld: tuple[
        tuple[int, int], ...
    ] = ()  # of the answers that the data marks as not to be learned
    remarks: tuple[
        str, ...
    ] = ()  # what a person should know of this row, each a phrase to count by


@dataclass
class _Pieces:
    """A dialogue before it is tokenised: texts and ids in turn, and which pieces are an answer."""

    items: list[str | list[int]] = field(default_factory=list)
    answers: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # place of a turn -> its pieces, first to end
    exact: bool = True  # whether every turn's text stands in it as it is


class ChatFormat:
    """The way one tokenizer writes dialogues: its chat template's, or the encoder's `[CLS] turn
    [SEP] turn [SEP] ...`.

    `start_id` opens a sequence; `end_id` ends an answer; `fill_id` fills the space behind it.
    Either of the last two says stop. `moment` is the time that a template may write: one for the
    whole run.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, moment: datetime | None = None):
        self.tokenizer = tokenizer
        start, end = ends_of(tokenizer)
        self.start_id: int | None = getattr(tokenizer, f"{start}_token_id") if start else None
        fill_id: int | None = getattr(tokenizer, f"{end}_token_id") if end else None
        mask_id = _first(tokenizer.mask_token_id)
        if fill_id is None or mask_id is None:
            raise model_error(
                "tokenizer_name",
                "a mask token and an end token ([SEP] or end of sequence)",
                "one without",
            )
        self.fill_id, self.mask_id = fill_id, mask_id
        self.pad_id = _first(tokenizer.pad_token_id, fill_id) or 0
        encoder = encoder_template(start, end)
        if not tokenizer.chat_template:
            tokenizer.chat_template = (
                encoder  # saved with the tokenizer, it says how the model was asked
            )
        # The encoder's own layout is known: it needs no rendering.
        by_template = tokenizer.chat_template != encoder
        self._template = Template(tokenizer, moment or datetime.now()) if by_template else None
        own = self._template.own_tokens if self._template else set[str]()
        self._escapes = Escapes(tokenizer, function_tokens(tokenizer) | own)
        self.end_id = token_id(tokenizer, self._template.end) if self._template else fill_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.end_id, self.fill_id)))

    @property
    def moment(self) -> datetime | None:
        """Return the time that the template writes; None where it writes none."""
        return self._template.moment if self._template else None

    def encode(
        self, dialogues: Sequence[Sequence[Turn]], *, find: Find = "all"
    ) -> list[Encoded | str]:
        """Encode many dialogues in one tokenizer call; a string says why the template does not take
        one.

        A dialogue of one `text` turn is a text: no answers. `find`: the answers that the caller
        needs, since looking for one costs a rendering, and a template may write earlier answers so
        that they cannot be found.
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
        """Ids up to where the assistant's next turn begins.

        Raises JobError (exit 4) when the template does not take the turns.
        """
        hidden = [escaped(turn, self._escapes.hide) for turn in turns]
        if self._template is None:
            items = self._encoder_pieces(hidden).items
        else:
            try:
                items = [self._template.prompt(hidden)]
            except Refused as refused:
                raise model_error(
                    "tokenizer_name", "a chat template that takes this dialogue", str(refused)
                ) from refused
        tokens = iter(self._escapes.tokenize([item for item in items if isinstance(item, str)]))
        return np.array(
            [
                token
                for item in items
                for token in (next(tokens) if isinstance(item, str) else item)
            ],
            np.int32,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The answer's text: everything before the first end token."""
        stops = [place for place, token in enumerate(ids) if token in self.end_ids]
        return self.text(list(ids)[: stops[0]] if stops else ids).strip()

    def text(self, ids: Sequence[int]) -> str:
        """Decode ids, tokens with a function left out; one that a user added is text."""
        return str(
            self.tokenizer.decode([token for token in ids if token not in self._escapes.ids])
        )

    def shown(self, ids: Sequence[int]) -> str:
        """Show ids to a person: an added token in ⟦ ⟧, so that it differs from its spelling."""
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
        """A half-revealed canvas as text: every masked token is one `hole`, end tokens are left
        out.
        """
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
        for (number, (_, places)), one in zip(asked.items(), written, strict=True):
            plans[number] = str(one) if isinstance(one, Refused) else _template_pieces(one, places)
        return [plans[number] for number in range(len(dialogues))]

    def _encoder_pieces(self, turns: Sequence[Turn]) -> _Pieces:
        pieces = _Pieces(self._opening())
        for place, turn in enumerate(turns):
            pieces.items += [turn.with_thought, [self.fill_id]]
            if turn.role == "assistant":
                pieces.answers[place] = (len(pieces.items) - 2, len(pieces.items))
        return pieces

    def _opening(self) -> list[str | list[int]]:
        return [] if self.start_id is None else [[self.start_id]]

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
    """Choose the answers to look for."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if find == "all":
        return places
    return [
        place
        for place in places
        if place == places[-1] or (find == "marked" and not turns[place].learn)
    ]


def _template_pieces(written: Written, places: Sequence[int]) -> _Pieces:
    pieces, at = _Pieces(exact=written.exact), 0
    for place, (start, end) in zip(places, written.answers, strict=True):
        pieces.items += [written.text[at:start], written.text[start:end]]
        pieces.answers[place] = (len(pieces.items) - 1, len(pieces.items))
        at = end
    # What a template writes after the last end token (ChatML's line break) belongs to no turn.
    if not places:
        pieces.items.append(written.text)
    return pieces


def _first(*ids: object) -> int | None:
    return next((token for token in ids if isinstance(token, int)), None)


def supervision(encoded: Encoded, *, answers_only: bool, turns: str) -> NDArray[np.bool_]:
    """Which tokens are learned, bool[T]: the last answer or all; without `answers_only`, and in a
    text, all but the first.

    A document's first token is never masked: no family predicts it.
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
