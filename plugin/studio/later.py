"""Pages of the form and the queue, whose modules the first page does not wait for.

They check parameters, and take as long to import as a third of all that the first page needs.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Annotated

from fastapi import Query
from nicegui import app, ui

from .frame import frame
from .place import Place

MODULES = ("form_page", "queue_page")
WAIT_S = 60  # for a page that is asked for before its module is there


def pages(place: Place) -> None:
    app.on_connect(_imported)  # the first page is in its browser: now there is time

    @ui.page("/new", response_timeout=WAIT_S)
    async def _(repeats: Annotated[str, Query(alias="from")] = "", template: str = "") -> None:
        await _imported()
        from .form_page import NewRun

        with frame("New run", here="/new"):
            NewRun(place, repeats, template)

    @ui.page("/queue", response_timeout=WAIT_S)
    async def _() -> None:
        await _imported()
        from .queue_page import show_queue

        with frame("Queue", here="/queue"):
            await show_queue(place)


async def _imported() -> None:
    """Import the modules beside what the server does."""
    await asyncio.to_thread(lambda: [import_module(f".{name}", __package__) for name in MODULES])
