"""A page that plays the denoising of one answer, complete in itself: no network, no library."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..base.errors import shown
from .records import HOLE, DenoisingRecord

TEMPLATE = Path(__file__).with_name("player.html")
THEMES = ("dark", "light", "")
MOST_TEXT = 250_000  # characters of the frames of an answer without tokens


def player_page(
    prompt: str, remark: str, records: Sequence[DenoisingRecord], *, theme: str = ""
) -> str:
    """Return the page. `remark`: figures that stand below the answer.

    `theme`: dark or light; empty: as the browser is set. Tokens are coloured by the step that
    revealed them; an answer of an earlier version, without tokens, plays as text.
    """
    assert theme in THEMES
    coloured = all(record.tokens is not None for record in records)
    data = _steps(records) if coloured else {"texts": _texts(records)}
    # A script ends at the first `</`, whatever is around it.
    script = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("[[THEME]]", theme)
    final = records[-1].text if records else ""
    for name, text in {"PROMPT": prompt, "REMARK": remark.rstrip("."), "FINAL": final}.items():
        page = page.replace(f"[[{name}]]", html.escape(shown(text)).replace("[[", "&#91;&#91;"))
    return page.replace("[[DATA]]", script)


def _steps(records: Sequence[DenoisingRecord]) -> dict[str, Any]:
    """Return what each step changes: [step, block, places of the canvas, positions, texts].

    A line of a trace does not say how long its canvas is: what stands in it and its masks, which
    its text counts.
    """
    given = [(place, shown(text)) for record in records for place, text in record.given]
    known: dict[int, str] = {}
    written = end = 0  # HOLEs that are text; the place after the last known one
    steps: list[Any] = []
    for record in records:
        tokens = [shown(token) for token in record.tokens or ()]
        revealed = list(zip(record.positions, tokens, strict=True))
        for place, text in revealed if steps else [*given, *revealed]:
            written += text.count(HOLE) - known.get(place, "").count(HOLE)
            known[place], end = text, max(end, place + 1)
        masks = max(0, record.text.count(HOLE) - written)
        size = max(len(known) + masks, end)
        steps.append([record.step, record.block, size, record.positions, tokens])
    return {"given": given, "steps": steps}


def _texts(records: Sequence[DenoisingRecord]) -> list[Any]:
    """Return [step, block, number of new tokens, text] of a step; of some, where texts are long."""
    longest = max(len(record.text) for record in records)
    most = max(8, min(len(records), MOST_TEXT // (longest + 1)))
    ends = sorted({len(records) * (number + 1) // most for number in range(most)})
    return [
        [
            records[end - 1].step,
            records[end - 1].block,
            sum(len(record.positions) for record in records[start:end]),
            shown(records[end - 1].text),
        ]
        for start, end in pairwise([0, *ends])
        if end > start
    ]
