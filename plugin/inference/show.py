"""Answers on a terminal, complete or while they are denoised; their control characters escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.text import Text

from ..base.errors import shown
from ..data.chat import ChatFormat
from ..player.records import HOLE


def canvas_text(chat: ChatFormat, ids: Sequence[int]) -> str:
    """Return an answer that is still being denoised, up to its end."""
    return chat.frame(chat.until_end(ids), HOLE)


def canvas_line(chat: ChatFormat, ids: Sequence[int]) -> Text:
    """Render an answer that is still being denoised."""
    text = Text("bot  ", style="bold green")
    for run in re.split(f"({HOLE}+)", shown(canvas_text(chat, ids))):
        text.append(run, style="magenta" if run.startswith(HOLE) else "default")
    return text


def answer_line(text: str, remark: str) -> Text:
    """Render a complete answer, with a remark behind it."""
    return Text.assemble(("bot  ", "bold green"), shown(text), (f"   {remark}", "dim"))
