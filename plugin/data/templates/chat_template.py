"""Text that a tokenizer's chat template writes for a dialogue, and the place of each answer in it.

Training uses the text that the template itself writes for the row, with everything that it strips,
adds or moves. An answer begins where the template's generation prompt ends, and ends with the
template's own end marker, after any white space before the marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...base.errors import first_line, model_error, one_line
from ..turns import THOUGHTS, Turn
from .renderer import LIMITS, Failed, OverLimit, RenderJob, render

# Contents of private-use characters, which occur in no template and no text.
_PROBES = ("\ue000{}\ue001", "\ue002")
_ROLES_SHOWN = 6
_REFUSES = "chat template refuses"
_TOO_LONG = "chat template writes far more than the dialogue says"
MAX_SOURCE = 200_000  # characters of a chat template; published ones have a few thousand
# A text may have ADDED characters more than TIMES those of the dialogue's messages.
ADDED, TIMES = 100_000, 8
TOGETHER = 1 << 22  # a rendering call ends with the dialogue that passes this many characters


class Refused(ValueError):
    """A dialogue that the template refuses; the message is a short phrase to count by."""


@dataclass(frozen=True)
class Written:
    """A dialogue in the template's notation."""

    text: str
    answers: tuple[tuple[int, int], ...]  # (start, end) in characters, end marker included
    exact: bool  # every turn's text occurs unchanged


# A call for the time, with its format in quotes.
_TIME = re.compile(r"""strftime_now\(\s*(['"])([^'"]*)\1\s*\)""")


def freeze(source: str, moment: datetime) -> str:
    """Replace the calls for the time in a template's source by `moment`.

    Raises JobError (exit 4) for a call without a quoted format.
    """
    frozen = _TIME.sub(
        lambda call: json.dumps(moment.strftime(call[2]), ensure_ascii=False), source
    )
    if re.search(r"strftime_now\s*\(", frozen):
        expected = "a chat template that asks for the time as strftime_now('%Y')"
        fix = "Write the format in quotes: a resumed run must see the same prompts."
        raise model_error("tokenizer_name", expected, "another call", fix)
    return frozen


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Map ids to the added tokens. Runs of spaces, which some tokenizers add, count as text."""
    return {
        token: str(added)
        for token, added in tokenizer.added_tokens_decoder.items()
        if str(added).strip()
    }


@dataclass(frozen=True)
class _Call:
    """A dialogue to render."""

    turns: tuple[Turn, ...]
    generation: bool = False  # with the generation prompt
    until_answer: bool = False  # only the text before the probe's answer


class ChatTemplate:
    """A chat template. Raises JobError (exit 4) for a template that cannot be served."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, moment: datetime):
        self._tokenizer, self._added = tokenizer, added_tokens(tokenizer)
        source = _source(tokenizer)
        self._source = freeze(source, moment)
        self.moment = moment if self._source != source else None  # None: it writes no time
        # A template reads a thought under one of these names, or as part of the text.
        read = [key for key in THOUGHTS if re.search(rf"""\.{key}\b|['"]{key}['"]""", source)]
        self._thought = read[0] if read else None
        self._in_parts = False
        turns, text = self._probe()
        self._asks = self._can_ask(turns, text)
        self.end = self._end_marker(text.split(_PROBES[1])[-1])

    @property
    def own_tokens(self) -> set[str]:
        """Return the added tokens around the turns of a prompt, and the end marker."""
        user, answer, system = (
            Turn(role, _PROBES[0].format(role)) for role in ("user", "assistant", "system")
        )
        found = {self.end}
        for turns in ([user], [system, user], [user, answer, user]):
            try:
                prompt = self.prompt(turns)
            except Refused:
                continue
            ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            found |= {self._added[token] for token in ids if token in self._added}
        return found

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Write the text up to the start of the next answer. Raises Refused."""
        return self._one(self._asking(turns))

    def write(
        self, dialogues: Sequence[tuple[Sequence[Turn], Sequence[int]]]
    ) -> list[Written | Refused]:
        """Write each dialogue and find the answers at the given places among its turns."""
        found: list[Written | Refused] = []
        calls = [
            [_Call(tuple(turns)), *(self._finding(turns, place) for place in places)]
            for turns, places in dialogues
        ]
        texts = iter(self._render([call for those in calls for call in those]))
        for (turns, places), those in zip(dialogues, calls, strict=True):
            text, *befores = [next(texts) for _ in those]
            try:
                found.append(self._written(turns, places, _taken(text), [*map(_taken, befores)]))
            except Refused as refused:
                found.append(refused)
        return found

    def _written(
        self, turns: Sequence[Turn], places: Sequence[int], text: str, befores: Sequence[str]
    ) -> Written:
        answers: list[tuple[int, int]] = []
        for before in befores:
            start, end = self._find(before, text)
            if answers and answers[-1][1] > start:
                raise Refused(f"chat template ends no answer but the last with {self.end!r}")
            answers.append((start, end))
        # An answer such as `a` occurs somewhere in any text, so it is searched in its own place.
        home = {place: text[start:end] for place, (start, end) in zip(places, answers, strict=True)}
        exact = all(
            turn.text.strip() in home.get(place, text) and turn.thought.strip() in text
            for place, turn in enumerate(turns)
        )
        return Written(text, tuple(answers), exact)

    def _can_ask(self, turns: Sequence[Turn], answered: str) -> bool:
        """Tell a template whose generation prompt begins `answered`, the text with an answer."""
        try:
            asked = self._one(_Call(tuple(turns), generation=True))
            return asked != self._one(_Call(tuple(turns))) and answered.startswith(asked)
        except Refused:
            return False

    def _asking(self, turns: Sequence[Turn]) -> _Call:
        """Make the call that writes a prompt."""
        if self._asks:
            return _Call(tuple(turns), generation=True)
        return _Call((*turns, Turn("assistant", _PROBES[1])), until_answer=True)

    def _finding(self, turns: Sequence[Turn], place: int) -> _Call:
        """Make the call that writes the text before an answer."""
        if any(turn.role == "user" for turn in turns[:place]):
            return self._asking(turns[:place])
        # An answer to nothing, such as a greeting: the text before it.
        return _Call(
            (*turns[:place], Turn("assistant", _PROBES[1]), *turns[place + 1 :]), until_answer=True
        )

    def _find(self, before: str, text: str) -> tuple[int, int]:
        if not text.startswith(before):
            raise Refused("chat template changes a prompt once its answer follows")
        end = text.find(self.end, len(before))
        if end < 0:
            raise Refused(f"chat template does not end the answer with {self.end!r}")
        if not text[len(before) : end].strip():
            raise Refused("chat template omits the answer")
        return len(before), end + len(self.end)

    def _probe(self) -> tuple[list[Turn], str]:
        """Find the shortest dialogue that the template accepts, and its text with an answer."""
        user = Turn("user", _PROBES[0].format(0))
        openings = ([user], [Turn("system", _PROBES[0].format(1)), user])
        reason = ""
        for in_parts in (False, True):
            self._in_parts = in_parts
            for turns in openings:
                try:
                    text = self._one(_Call((*turns, Turn("assistant", _PROBES[1]))))
                except Refused as refused:
                    reason = reason or str(refused).removeprefix(f"{_REFUSES} ")
                    continue
                if user.text in text and _PROBES[1] in text:
                    return turns, text
        expected = "a chat template that accepts user, assistant"
        reason = reason or "a template that omits their text"
        raise model_error("tokenizer_name", expected, reason)

    def _end_marker(self, tail: str) -> str:
        """Find the first added token after an answer, after any text before it."""
        for token in self._tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token in self._added:
                return self._added[token]
        expected = "a chat template that ends the assistant's turn with a token"
        if not tail.strip():
            raise model_error("tokenizer_name", expected, "a template without an end token")
        got = f"{tail.strip()[:40]!r}, which is no token of this tokenizer"
        fix = "Add it to the tokenizer as a special token."
        raise model_error("tokenizer_name", expected, got, fix)

    def _one(self, call: _Call) -> str:
        return _taken(self._render([call])[0])

    def _render(self, calls: Sequence[_Call]) -> list[str | Refused]:
        """Render every dialogue, as many in a call as TOGETHER allows."""
        found: list[str | Refused] = []
        messages: dict[int, dict[str, Any]] = {}  # of each turn; calls of a dialogue share them
        jobs: list[RenderJob] = []
        size = 0
        for number, call in enumerate(calls, start=1):
            for turn in call.turns:
                if id(turn) not in messages:
                    messages[id(turn)] = self._message(turn)
            jobs.append(chat_job([messages[id(turn)] for turn in call.turns], call.generation))
            size += jobs[-1].longest
            if size >= TOGETHER * TIMES or number == len(calls):
                texts = render_chat(self._tokenizer, self._source, jobs)
                made = calls[number - len(jobs) : number]
                found += [_read(one, text) for one, text in zip(made, texts, strict=True)]
                jobs, size = [], 0
        return found

    def _message(self, turn: Turn) -> dict[str, Any]:
        apart = self._thought if turn.thought else None
        text = turn.text if apart else turn.with_thought
        content = [{"type": "text", "text": text}] if self._in_parts else text
        said = {"role": turn.role, "content": content}
        # transformers gives a thought both names, in addition to its own.
        return (
            {
                "thinking": turn.thought,
                **said,
                apart: turn.thought,
                "reasoning_content": turn.thought,
            }
            if apart
            else said
        )


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template. Raises JobError (exit 4)."""
    try:
        source = str(tokenizer.get_chat_template())
    except (ValueError, TypeError) as error:  # no default among several, or names that are no text
        got = str(error).split("\n")[0][:200]
        expected = "one chat template, or one named default"
        raise model_error("tokenizer_name", expected, got) from error
    if len(source) > MAX_SOURCE:
        expected = f"a chat template of at most {MAX_SOURCE} characters"
        raise model_error("tokenizer_name", expected, f"{len(source)} characters")
    return source


def chat_job(messages: Sequence[Mapping[str, Any]], generation: bool) -> RenderJob:
    """Make the job that writes a dialogue, with the values that transformers passes."""
    size = sum(len(text) for one in messages for text in one.values() if isinstance(text, str))
    values = {
        "messages": messages,
        "add_generation_prompt": generation,
        "tools": None,
        "documents": None,
    }
    return RenderJob(values, ADDED + TIMES * size)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, source: str, jobs: Sequence[RenderJob]
) -> list[str | Failed]:
    """Render dialogues by a template's source. Raises JobError (exit 4) if it exceeds a limit."""
    try:
        return render("chat", source, jobs, tokenizer.special_tokens_map)
    except OverLimit as error:
        expected = f"a chat template that ends within {LIMITS}"
        fix = "Use another tokenizer, or correct its chat template."
        raise model_error("tokenizer_name", expected, str(error), fix) from error


def _taken(text: str | Refused) -> str:
    if isinstance(text, Refused):
        raise text
    return text


def _read(call: _Call, text: str | Failed) -> str | Refused:
    """Read the template's answer to a call."""
    if isinstance(text, Failed):
        return Refused(_TOO_LONG) if text.too_long else _refusal(call, text)
    # Tokenizers accept no half of a surrogate pair.
    if text.encode("utf-8", "ignore").decode() != text:
        return Refused("chat template writes half a character")
    if not call.until_answer:
        return text
    if _PROBES[1] not in text:
        return Refused("chat template does not write the answer")
    return text.split(_PROBES[1])[0]


def _refusal(call: _Call, failed: Failed) -> Refused:
    roles = [turn.role for turn in call.turns]
    shown = ", ".join(roles[:_ROLES_SHOWN]) + (", ..." if len(roles) > _ROLES_SHOWN else "")
    reason = first_line(failed.words.strip() or failed.kind)
    return Refused(f"{_REFUSES} {shown or 'no turns'}: {one_line(reason)}")
