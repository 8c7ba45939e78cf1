"""A tokenizer's chat template at work: the text that it writes for a dialogue, and where the
answers in it stand.

What is trained is what the template itself writes for the row, whatever it strips, adds or moves.
An answer begins where the template's generation prompt ends and ends with the template's own end
marker, whatever white space stands before the marker.
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
from .renderer import LIMITS, Failed, Job, OverLimit, render

_PROBES = (
    "\ue000{}\ue001",
    "\ue002",
)  # private-use characters: contents that no template and no text holds
_ROLES_SHOWN = 6
_REFUSES = "chat template refuses"
_TOO_LONG = "chat template writes far more than the dialogue says"
MAX_SOURCE = 200_000  # characters of a chat template; published ones have a few thousand
ADDED, TIMES = (
    100_000,
    8,
)  # characters of a dialogue's text: so many more, and so many times what it says
TOGETHER = 1 << 22  # characters of the dialogues that are rendered at once, but for the last one


class Refused(ValueError):
    """A dialogue that the template does not take; its text is a short phrase to count by."""


@dataclass(frozen=True)
class Written:
    """A dialogue as the template writes it."""

    text: str
    answers: tuple[tuple[int, int], ...]  # characters of each answer, its end marker included
    exact: bool  # whether every turn's text stands in it as it is


# A template asks for the time by its format, a text in quotes.
_TIME = re.compile(r"""strftime_now\(\s*(['"])([^'"]*)\1\s*\)""")


def freeze(source: str, moment: datetime) -> str:
    """Make a template's source write `moment` for the time.

    Raises JobError (exit 4) if it cannot.
    """
    frozen = _TIME.sub(
        lambda call: json.dumps(moment.strftime(call[2]), ensure_ascii=False), source
    )
    if re.search(r"strftime_now\s*\(", frozen):
        fix = (
            "Write the format in quotes: a run's prompts have to stay the same when it is resumed."
        )
        raise model_error(
            "tokenizer_name",
            "a chat template that asks for the time as strftime_now('%Y')",
            "another call",
            fix,
        )
    return frozen


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """List the added tokens by id; runs of spaces, which some tokenizers add, are text."""
    return {
        token: str(added)
        for token, added in tokenizer.added_tokens_decoder.items()
        if str(added).strip()
    }


@dataclass(frozen=True)
class _Call:
    """A dialogue to be rendered."""

    turns: tuple[Turn, ...]
    generation: bool = False  # with the prompt for an answer
    until_answer: bool = False  # what stands before the probe's answer is wanted


class Template:
    """Renders dialogues. Raises JobError (exit 4) for a template that cannot be served."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, moment: datetime):
        self._tokenizer = tokenizer
        try:
            source = str(tokenizer.get_chat_template())
        except (
            ValueError,
            TypeError,
        ) as error:  # several templates, none of them the default; names that are no text
            got = first_line(error)
            raise model_error(
                "tokenizer_name", "one chat template, or one named default", got
            ) from error
        if len(source) > MAX_SOURCE:
            got = f"{len(source)} characters"
            raise model_error(
                "tokenizer_name", f"a chat template of at most {MAX_SOURCE} characters", got
            )
        self._source = freeze(source, moment)
        self.moment = (
            moment if self._source != source else None
        )  # the time that it writes, if it writes any
        # A template reads a thought under one of these names, or finds it in the text.
        read = [key for key in THOUGHTS if re.search(rf"""\.{key}\b|['"]{key}['"]""", source)]
        self._thought = read[0] if read else None
        self._in_parts = False
        turns, whole = self._probe()
        self._asks = self._can_ask(turns, whole)
        tail = whole.split(_PROBES[1])[-1]
        self.end = self._end_marker(tail)

    @property
    def own_tokens(self) -> set[str]:
        """Find the added tokens around the turns of a prompt, and the end marker."""
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
        """Write the text up to where the next answer begins. Raises Refused."""
        return self._one(self._asking(turns))

    def write(
        self, dialogues: Sequence[tuple[Sequence[Turn], Sequence[int]]]
    ) -> list[Written | Refused]:
        """Write each dialogue and find the answers at the places named beside it."""
        found: list[Written | Refused] = []
        calls = [
            [_Call(tuple(turns)), *(self._finding(turns, place) for place in places)]
            for turns, places in dialogues
        ]
        texts = iter(self._render([call for those in calls for call in those]))
        for (turns, places), those in zip(dialogues, calls, strict=True):
            whole, *befores = [next(texts) for _ in those]
            try:
                found.append(self._written(turns, places, _taken(whole), [*map(_taken, befores)]))
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
        # An answer such as `a` stands somewhere in any text: it is looked for in its own place.
        home = {place: text[start:end] for place, (start, end) in zip(places, answers, strict=True)}
        exact = all(
            turn.text.strip() in home.get(place, text) and turn.thought.strip() in text
            for place, turn in enumerate(turns)
        )
        return Written(text, tuple(answers), exact)

    def _can_ask(self, turns: Sequence[Turn], whole: str) -> bool:
        """Tell whether the template's generation prompt is how `whole`, the same with an answer,
        begins.
        """
        try:
            asked = self._one(_Call(tuple(turns), generation=True))
            return asked != self._one(_Call(tuple(turns))) and whole.startswith(asked)
        except Refused:
            return False

    def _asking(self, turns: Sequence[Turn]) -> _Call:
        """Choose the call that writes a prompt."""
        if self._asks:
            return _Call(tuple(turns), generation=True)
        return _Call((*turns, Turn("assistant", _PROBES[1])), until_answer=True)

    def _finding(self, turns: Sequence[Turn], place: int) -> _Call:
        """Choose the call that writes what stands before an answer."""
        if any(turn.role == "user" for turn in turns[:place]):
            return self._asking(turns[:place])
        # An answer to nothing, such as a greeting: what stands before its own text.
        return _Call(
            (*turns[:place], Turn("assistant", _PROBES[1]), *turns[place + 1 :]), until_answer=True
        )

    def _find(self, before: str, text: str) -> tuple[int, int]:
        if not text.startswith(before):
            raise Refused("chat template writes a prompt otherwise once its answer is there")
        end = text.find(self.end, len(before))
        if end < 0:
            raise Refused(f"chat template does not end the answer with {self.end!r}")
        if not text[len(before) : end].strip():
            raise Refused("chat template leaves the answer out")
        return len(before), end + len(self.end)

    def _probe(self) -> tuple[list[Turn], str]:
        """Find the shortest dialogue that the template takes, and its text with an answer."""
        user = Turn("user", _PROBES[0].format(0))
        openings = ([user], [Turn("system", _PROBES[0].format(1)), user])
        reason = ""
        for in_parts in (False, True):
            self._in_parts = in_parts
            for turns in openings:
                try:
                    whole = self._one(_Call((*turns, Turn("assistant", _PROBES[1]))))
                except Refused as refused:
                    reason = reason or str(refused).removeprefix(f"{_REFUSES} ")
                    continue
                if user.text in whole and _PROBES[1] in whole:
                    return turns, whole
        reason = reason or "one that leaves out their text"
        raise model_error("tokenizer_name", "a chat template that takes user, assistant", reason)

    def _end_marker(self, tail: str) -> str:
        """Find the first added token behind an answer, whatever stands before it."""
        self._added = added_tokens(self._tokenizer)
        for token in self._tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token in self._added:
                return self._added[token]
        expected = "a chat template that ends the assistant's turn with a token"
        if not tail.strip():
            raise model_error("tokenizer_name", expected, "one that does not")
        got = f"{tail.strip()[:40]!r}, which is no token of this tokenizer"
        raise model_error(
            "tokenizer_name", expected, got, "Add it to the tokenizer as a special token."
        )

    def _one(self, call: _Call) -> str:
        return _taken(self._render([call])[0])

    def _render(self, calls: Sequence[_Call]) -> list[str | Refused]:
        """Render every dialogue, as many at once as TOGETHER lets."""
        found: list[str | Refused] = []
        messages: dict[
            int, dict[str, Any]
        ] = {}  # one for each turn: calls of one dialogue share them
        jobs: list[Job] = []
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
        # transformers gives a thought both names, whatever it was called.
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


def chat_job(messages: Sequence[Mapping[str, Any]], generation: bool) -> Job:
    """Make the job that writes a dialogue, with the values that transformers gives a template."""
    size = sum(len(text) for one in messages for text in one.values() if isinstance(text, str))
    values = {
        "messages": messages,
        "add_generation_prompt": generation,
        "tools": None,
        "documents": None,
    }
    return Job(values, ADDED + TIMES * size)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, source: str, jobs: Sequence[Job]
) -> list[str | Failed]:
    """Render dialogues by a chat template's source. Raise JobError (exit 4) for one without end."""
    try:
        return render("chat", source, jobs, tokenizer.special_tokens_map)
    except OverLimit as error:
        fix = "Use another tokenizer, or mend its chat template."
        raise model_error(
            "tokenizer_name", f"a chat template that ends within {LIMITS}", str(error), fix
        ) from error


def _taken(text: str | Refused) -> str:
    if isinstance(text, Refused):
        raise text
    return text


def _read(call: _Call, text: str | Failed) -> str | Refused:
    """Read what the template made of a call."""
    if isinstance(text, Failed):
        return Refused(_TOO_LONG) if text.too_long else _refusal(call, text)
    if (
        text.encode("utf-8", "ignore").decode() != text
    ):  # tokenizers take no half of a surrogate pair
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
