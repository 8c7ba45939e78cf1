"""Charts on a page: drawn once, then given the points that are new."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nicegui import ui

from ...comparison.web_charts import Panel, by_title, chart_options, patches
from ..frame import heading


class ChartView:
    """Charts of a page, in the order in which their panels first had points."""

    def __init__(self) -> None:
        self._box = ui.element("div").classes("charts")
        self._shown: dict[str, tuple[Panel, ui.echart, ui.label]] = {}

    def show(self, panels: Sequence[Panel]) -> None:
        """Show these panels. A point that the browser has is not sent again."""
        for title, panel in by_title(panels).items():
            if title not in self._shown:
                self._shown[title] = self._draw(panel)
                continue
            before, chart, words = self._shown[title]
            self._shown[title] = (panel, chart, words)
            words.set_text(panel.last_values)
            if before.shape != panel.shape:
                chart.options.clear()
                chart.options.update(chart_options(panel))
                chart.update()
                ui.run_javascript("studioTheme()")
            elif found := patches(before, panel):
                ui.run_javascript(f"studioPoints({chart.id}, {json.dumps(found)})")

    def _draw(self, panel: Panel) -> tuple[Panel, ui.echart, ui.label]:
        with self._box, ui.element("section").classes("panel"):
            heading(panel.title)
            chart = ui.echart(chart_options(panel)).classes("chart")
            chart.props(f'role=img aria-label="{panel.title}: its last values are below"')
            words = ui.label(panel.last_values).classes("dim")
        ui.run_javascript("studioTheme()")
        return panel, chart, words
