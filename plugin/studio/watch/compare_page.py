"""Page of several runs: curves on one chart, settings that differ, results, what compares."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nicegui import context, ui

from ...base.errors import JobError, one_line
from ...comparison.curves import EVAL_LOSS, LOSS
from ...comparison.web_charts import loss_panel
from ..frame import frame, heading, plain_table
from ..place import Place
from .chart_view import ChartView

if TYPE_CHECKING:
    from ...comparison.side_by_side import SideBySide


def pages(place: Place) -> None:
    @ui.page("/compare", response_timeout=60)
    async def _() -> None:
        request = context.client.request
        names = list(dict.fromkeys(request.query_params.getlist("runs"))) if request else []
        with frame("Compare runs", here="/"):
            missing = [name for name in names if place.run_dir(name) is None]
            for name in missing:
                ui.label(f"There is no run {one_line(name)} here.").classes("problem")
            found = [name for name in names if name not in missing]
            if len(found) < 2:
                ui.label("Choose two runs or more in the list of runs, then Compare.")
                ui.link("All runs", "/")
                return
            try:
                compared = await asyncio.to_thread(_compare, place, found)
            except JobError as error:
                for problem in error.problems:
                    ui.label(str(problem)).classes("problem")
                return
            _show(compared)


def _compare(place: Place, names: Sequence[str]) -> SideBySide:
    """Compare runs as main.py compare does. Raises JobError."""
    from ...comparison.runs import read_runs  # with the parameters: not at the first page
    from ...comparison.side_by_side import side_by_side

    return side_by_side(read_runs([str(place.root / name) for name in names]))


def _show(found: SideBySide) -> None:
    from ...comparison.notes import setting_text

    ui.button("Refresh", on_click=ui.navigate.reload).props("outline dense").classes("narrow")
    axis, labels = found.axis, found.labels
    panels = [
        loss_panel(title, [(run.label, run.history.curve(name, axis)) for run in found.runs], axis)
        for title, name in (("Training loss", LOSS), ("Held-out loss", EVAL_LOSS))
    ]
    ChartView().show([panel for panel in panels if panel.series])
    results = [[row.title, *(one_line(row.text(label)) for label in labels)] for row in found.rows]
    settings = [
        [name, *(setting_text(row[label]) for label in labels)]
        for name, row in found.differ.items()
    ]
    for title, rows in (("Results", results), ("Settings that differ", settings)):
        with ui.element("section").classes("panel"):
            heading(title)
            if rows:
                plain_table(("", *labels), rows)
            else:
                ui.label("None.")
    if found.notes:
        with ui.element("section").classes("panel"):
            heading("What to know")
            for note in found.notes:
                ui.label(one_line(note))
