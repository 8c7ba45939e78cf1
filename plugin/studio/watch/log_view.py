"""Log of a run on a page."""

from __future__ import annotations

import json
from pathlib import Path

from nicegui import ui

from ...run.log_reader import LogPart, LogReader
from ..frame import flat, heading


class LogView:
    """The log on a page."""

    def __init__(self, path: Path):
        self.reader = LogReader(path)
        with ui.element("section").classes("panel"):
            with ui.element("div").classes("row-of"):
                heading("Log").classes("grow")
                self._earlier = flat("Earlier", self._show_before)
            self._box = ui.element("pre").classes("log mono")
            self._box.props('role=log aria-live=off aria-label="log" tabindex=0')

    def add(self, part: LogPart) -> None:
        """Show lines that were read."""
        words = f"{self._box.id}, {json.dumps(part.text)}, {json.dumps(part.place)}"
        ui.run_javascript(f"studioLog({words})")
        self._earlier.set_enabled(self.reader.start > 0)

    def _show_before(self) -> None:
        try:
            part = self.reader.read_before()
        except OSError as error:
            ui.notify(f"log.txt: {error.strerror}")
            return
        if part:
            self.add(part)
