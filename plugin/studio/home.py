"""First page: the runs of the root folder."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import ui

from ..comparison.summary import RunSummary, Summaries, summaries_of
from .frame import EVERY_S, frame, pause_s
from .place import Place

_NUMBER = "value => value == null ? '–' : value.toLocaleString('en', {maximumSignificantDigits: 4})"
_SHARE = "(value, row) => value == null ? '–' : value + (row.steps ? ' of ' + row.steps : '')"
_TIME = "value => value.slice(0, 16).replace('T', ' ')"
_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "name", "label": "run", "classes": "wide"},
    {"name": "status", "label": "status", "classes": "wide"},
    {"name": "step", "label": "step", ":format": _SHARE, "align": "right"},
    {"name": "loss", "label": "loss", ":format": _NUMBER, "align": "right"},
    {"name": "eval_loss", "label": "held-out loss", ":format": _NUMBER, "align": "right"},
    {"name": "tokens_per_s", "label": "tokens/s", ":format": _NUMBER, "align": "right"},
    {"name": "started", "label": "started (UTC)", ":format": _TIME},
    {"name": "method", "label": "method"},
    {"name": "model", "label": "model", "classes": "wide"},
    {"name": "data", "label": "data", "classes": "wide"},
)
_ICONS = {
    "running": "play_arrow",
    "done": "check",
    "stopped": "stop",
    "failed": "error_outline",
    "unfinished": "hourglass_disabled",
    "broken": "broken_image",
}
_NAME = """
<q-td :props="props"><a v-if="props.row.href" :href="props.row.href">{{ props.row.name }}</a>
<span v-else>{{ props.row.name }}</span></q-td>"""
_STATUS = """
<q-td :props="props"><span :class="'state state-' + props.row.status">
<q-icon :name="props.row.icon" size="1.1em" aria-hidden="true" />
{{ props.row.status }}<template v-if="props.row.phase">, {{ props.row.phase }}</template></span>
<div v-if="props.row.error" class="dim">{{ props.row.error }}</div></q-td>"""
_CHOICE = '<q-checkbox dense v-model="props.selected" :aria-label="`compare ${props.row.name}`" />'
_ALL = '<q-checkbox dense v-model="props.selected" aria-label="compare all" />'


def pages(place: Place) -> None:
    known = summaries_of(place.root)

    @ui.page("/")
    def _() -> None:
        with frame("Runs", here="/"):
            ui.label(str(place.root)).classes("mono dim")
            _RunTable(place, known)


class _RunTable:
    """The table of runs, and what the browser has of it."""

    def __init__(self, place: Place, known: Summaries):
        self._known = known
        self._rows = list_rows(known.read())
        self._empty = ui.label(
            "No runs yet. Start one with New run, or from a shell: "
            f"python main.py train --run_dir {place.root}/NAME ..."
        )
        with ui.element("div").classes("row-of") as self._tools:
            text = ui.input("filter").props("clearable").classes("grow")
            self._compare = ui.button("Compare", on_click=self._open_comparison)
            self._compare.disable()
            ui.label("Choose two runs or more to compare them.").classes("dim")
        columns = [
            {"align": "left", "sortable": True, "field": one["name"], **one} for one in _COLUMNS
        ]
        self._table = ui.table(
            rows=self._rows,
            columns=columns,
            row_key="name",
            selection="multiple",
            pagination=50,
            on_select=self._choose,
        )
        self._table.props('dense aria-label="runs"').classes("scroll")
        slots = {"cell-name": _NAME, "cell-status": _STATUS, "selection": _CHOICE}
        for name, template in slots.items():
            self._table.add_slot(f"body-{name}", template)
        self._table.add_slot("header-selection", _ALL)
        self._table.bind_filter_from(text, "value", backward=lambda one: one or "")
        self._show_empty()
        self._timer = ui.timer(EVERY_S, self._look, immediate=False)

    async def _look(self) -> None:
        rows, spent = await asyncio.to_thread(self._read)
        self._timer.interval = pause_s(spent)
        if [row["name"] for row in rows] != [row["name"] for row in self._rows]:
            self._rows = rows
            self._table.rows = rows
            self._show_empty()
            return
        changed: list[dict[str, Any]] = []
        for old, new in zip(self._rows, rows, strict=True):
            if old != new:
                old.update(new)  # of the table too, which is not sent again
                changed.append(new)
        if changed:
            ui.run_javascript(f"studioRows({self._table.id}, {json.dumps(changed)})")

    def _read(self) -> tuple[list[dict[str, Any]], float]:
        began = time.thread_time()
        return list_rows(self._known.read()), time.thread_time() - began

    def _show_empty(self) -> None:
        self._empty.set_visibility(not self._rows)
        self._table.set_visibility(bool(self._rows))
        self._tools.set_visibility(bool(self._rows))

    def _choose(self) -> None:
        self._compare.set_enabled(len(self._table.selected) > 1)

    def _open_comparison(self) -> None:
        names = [("runs", row["name"]) for row in self._table.selected]
        ui.navigate.to(f"/compare?{urlencode(names)}")


def list_rows(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Return the rows of the table: what has no page has no address."""
    return [
        {
            **run.model_dump(),
            "icon": _ICONS.get(run.status, ""),
            "href": f"/run/{quote(run.name)}" if run.status != "broken" else "",
        }
        for run in runs
    ]
