"""Dialogue of a page: one model at a time, what was asked and answered, its players.

It belongs to the studio, not to a page: a page that is opened again shows it as it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..base.errors import Code, JobError, first_line
from ..player.page import player_page
from .process import ChatAnswer, ChatCanvas, ChatNote, ChatProcess, ChatReady, ChatRefusal

IDLE_S = 15 * 60  # then the model's memory is given back
PLAYERS = 20  # answers whose steps are kept
MOST_SHOWN = 200  # exchanges


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and what came of it; neither an answer nor a problem: it is being answered."""

    number: int
    kind: str  # prompt or infill
    asked: str
    answer: ChatAnswer | None = None
    problem: str = ""


@dataclass
class Dialogue:
    """A model's process and the exchanges with it. `version` counts what a page shows."""

    model: str = ""  # as a page names it
    state: str = "none"  # none, loading, ready, answering or ended
    problem: str = ""  # of the process
    saved: dict[str, Any] = field(default_factory=dict[str, Any])  # settings of the model
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    remark: str = ""
    system: str = ""
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    canvas: str = ""
    version: int = 0
    _process: ChatProcess | None = None
    _idle: asyncio.TimerHandle | None = None
    _expiring: asyncio.Task[None] | None = None
    _opened: int = 0  # models, and ends of them
    _asked: int = 0

    @property
    def has_turn(self) -> bool:
        """Return whether there is a question to forget."""
        return bool(self._turns)

    @property
    def _turns(self) -> list[Exchange]:
        return [one for one in self.exchanges if one.kind == "prompt" and one.answer]

    async def open(self, model: str, path: str) -> None:
        """Load a model in place of the one before, and begin a dialogue with it."""
        await self.close()
        mine = self._opened
        self.model, self.state, self.problem, self.exchanges = model, "loading", "", []
        self.saved, self.settings, self.remark, self.system = {}, {}, "", ""
        self.version += 1
        try:
            process = await ChatProcess.start(path)
        except (OSError, ValueError) as error:  # no memory left; a name that no disk takes
            if mine == self._opened:
                self.state, self.problem = "ended", first_line(error)
                self.version += 1
            return
        if mine != self._opened:  # another one was chosen meanwhile
            await process.end()
            return
        self._process = process
        try:
            ready: ChatReady = await process.ready()
        except JobError as error:
            self._ended(process, first_line(error))
            return
        if self._process is process:
            self.state, self.remark = "ready", ready.remark
            self.saved = self.settings = ready.settings
            self._rest()

    async def close(self, why: str = "") -> None:
        """End the process, if there is one."""
        self._opened += 1
        if process := self._process:
            self._ended(process, why)
            await process.end()
        expiring, self._expiring = self._expiring, None
        if expiring and expiring is not asyncio.current_task():
            await expiring

    async def say(self, kind: str, text: str) -> None:
        """Ask a `prompt`, or fill the holes of an `infill`."""
        if self.state != "ready" or not text.strip():
            return
        self._asked += 1
        mine = Exchange(number=self._asked, kind=kind, asked=text)
        self.exchanges = [*self.exchanges, mine][-MOST_SHOWN:]
        reply = await self._ask(kind, text, self._show)
        if isinstance(reply, ChatAnswer):
            self._replace(replace(mine, answer=reply))
        else:
            self._replace(replace(mine, problem=_why(reply) or self.problem))

    async def command(self, line: str) -> str:
        """Obey a line such as `/steps 8`. Return why it could not be; empty: it was."""
        if self.state != "ready":
            return "the model is not ready"
        reply = await self._ask("command", line)
        if isinstance(reply, ChatNote):
            self.settings = reply.settings or self.settings
            self.version += 1
            return ""
        return _why(reply) or self.problem

    async def undo(self) -> str:
        """Forget the last question and its answer."""
        problem = await self.command("/undo")
        if self._turns and not problem:
            last = self._turns[-1]
            self.exchanges = [one for one in self.exchanges if one is not last]
            self.version += 1
        return problem

    async def restart(self) -> str:
        """Begin a new dialogue with the same model and settings."""
        problem = await self.command("/new")
        if not problem:
            self.exchanges = []
            self.version += 1
        return problem

    def stop(self) -> None:
        """Drop the answer that is being denoised."""
        if self._process and self.state == "answering":
            self._process.interrupt()

    def player(self, number: int, theme: str, *, bare: bool) -> str | None:
        """Return the page that plays an answer, `bare` without its question; None: not kept."""
        for one in self.exchanges:
            if one.number == number and one.answer and one.answer.trace:
                answer = one.answer
                asked = "" if bare else one.asked
                return player_page(asked, answer.remark, answer.trace, theme=theme)
        return None

    async def _ask(
        self, kind: str, text: str, show: Callable[[ChatCanvas], None] | None = None
    ) -> ChatAnswer | ChatNote | ChatRefusal | None:
        """Return the reply; None where the process ended."""
        assert self._process
        process, self.state, self.canvas = self._process, "answering", ""
        self.version += 1
        self._wake()
        try:
            reply = await process.ask(kind, text, show)
        except JobError as error:
            self._ended(process, first_line(error))
            return None
        if self._process is process:
            self.state = "ready"
            self._rest()
        return reply

    def _show(self, canvas: ChatCanvas) -> None:
        self.canvas = canvas.canvas

    def _replace(self, changed: Exchange) -> None:
        found = [changed if one.number == changed.number else one for one in self.exchanges]
        played = [one.number for one in found if one.answer and one.answer.trace][:-PLAYERS]
        self.exchanges = [_without_trace(one) if one.number in played else one for one in found]
        self.version += 1

    def _ended(self, process: ChatProcess, why: str) -> None:
        if self._process is process:
            self._process, self.state, self.problem = None, "ended", why
            self._wake()
            self.version += 1

    def _wake(self) -> None:
        if self._idle:
            self._idle.cancel()
        self._idle = None

    def _rest(self) -> None:
        self._wake()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._expire)
        self.version += 1

    def _expire(self) -> None:
        why = f"nobody asked for {IDLE_S // 60} minutes; its memory was given back"
        self._expiring = asyncio.create_task(self.close(why))


def _without_trace(one: Exchange) -> Exchange:
    assert one.answer
    return replace(one, answer=one.answer.model_copy(update={"trace": []}))


def _why(reply: ChatAnswer | ChatNote | ChatRefusal | None) -> str:
    if not isinstance(reply, ChatRefusal):
        return ""
    if any(problem.code == Code.INTERRUPTED for problem in reply.problems):
        return "stopped: the question is forgotten"
    return "; ".join(map(str, reply.problems))
