"""Form of a new run: its fields, named templates, the check, and the way into the queue."""

from __future__ import annotations

import shlex
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import context, run, ui

from ..base.errors import JobError, Problem
from ..config.parse import Draft, draft
from ..config.rules.no_effect import without_effect
from ..parent.check import train_command
from ..queue.content import as_yaml
from ..queue.folder import Queue
from ..run.lines import counted
from .check_view import show_plan, show_problems
from .dialogs import asked_name, confirmed, show_text
from .fields_view import Fields, states
from .frame import flat
from .place import Place
from .templates import (
    changed_values,
    delete_template,
    save_template,
    start_values,
    template_names,
)
from .watch.programs import checked, end_program

_START = ("model_name", "dataset_name")  # without them no run begins; a template may lack them


class NewRun:
    """The page: its fields, whether a person asked for their check, and the check that runs."""

    def __init__(self, place: Place, repeats: str, template: str):
        values, lines = start_values(place, run=repeats, template=template)
        self._place = place
        self._program: Process | None = None
        self._asked = self._stopped = False
        names = template_names(place)
        with ui.row().classes("tools"):
            search = ui.input("Search", on_change=lambda event: self._search(event.value))
            search.props("clearable debounce=200 type=search")
            self._template = ui.select(names, label="Template")
            self._template.value = template if template in names else None
            for text, act in (
                ("Load", self._load),
                ("Save as", self._save),
                ("Delete", self._delete),
                ("Show as YAML", lambda: show_text("As YAML", as_yaml(self._changed()))),
                ("Show as command", self._show_command),
                ("Reset all", lambda: self._fields.put({})),
            ):
                flat(text, act)
        self._found = ui.label().props("role=status").classes("dim small")
        self._problems = ui.column().classes("gap")
        self._fields = Fields(values, without_effect(draft(values).params), self._edited)
        self._actions()
        self._report = ui.column().classes("gap report")
        self._edited()
        self._list(lines, "Not taken over")
        context.client.on_delete(self._stop_check)

    def _actions(self) -> None:
        with ui.row().classes("actions"):
            self._check_button = ui.button("Check", on_click=self._check).props("outline")
            self._stop = ui.button("Stop the check", on_click=self._stop_check)
            self._stop.props("flat").set_visibility(False)
            ui.button("Add to queue", on_click=self._queue)
            self._download = ui.switch("The check may download")
            self._state = ui.label().props("role=status").classes("dim")

    def _draft(self) -> Draft:
        return draft(self._fields.values)

    def _changed(self) -> dict[str, object]:
        return changed_values(self._draft(), self._fields.values)

    def _edited(self) -> Draft:
        found = self._draft()
        self._fields.show(states(found, self._fields.values, asked=self._asked))
        if self._asked:
            self._list(found.problems)
        self._state.set_text(f"{len(changed_values(found, self._fields.values))} changed")
        return found

    def _search(self, text: str | None) -> None:
        found = self._fields.search(text or "")
        self._found.set_text(f"{counted(found, 'field')} found" if text else "")

    def _list(self, problems: Sequence[Problem | Mapping[str, Any] | str], title: str = "") -> None:
        """List problems above the fields."""
        self._problems.clear()
        if problems:
            with self._problems:
                show_problems(problems, title or f"{len(problems)} to correct")

    def _complete(self) -> dict[str, object] | None:
        """Return the values that differ from the defaults; None, with a list, for wrong ones."""
        self._asked = True
        found = self._edited()
        if found.problems:
            _scroll_to(".problems")
            return None
        return changed_values(found, self._fields.values)

    async def _check(self) -> None:
        values = self._complete()
        if values is None or self._program:
            return
        self._report.clear()
        self._stopped = False
        self._busy("checking: the model and the data are tried", on=True)
        try:
            answer = await checked(
                values, download=bool(self._download.value), started=self._started
            )
        except JobError as error:
            self._busy("the check was stopped" if self._stopped else "the check failed", on=False)
            self._list([] if self._stopped else error.problems)
            return
        self._busy("not ok" if answer["problems"] else "ok: this job can run", on=False)
        self._list(answer["problems"])
        if answer["plan"]:
            with self._report:
                show_plan(answer["plan"])
        _scroll_to(".problems" if answer["problems"] else ".report")

    def _started(self, program: Process) -> None:
        self._program = program

    def _stop_check(self) -> None:
        self._stopped = True
        end_program(self._program)

    def _busy(self, text: str, *, on: bool) -> None:
        self._program = self._program if on else None
        self._state.set_text(text)
        self._stop.set_visibility(on)
        self._check_button.set_enabled(not on)

    async def _queue(self) -> None:
        if (values := self._complete()) is None:
            return
        try:
            await run.io_bound(Queue(self._place.root).add, values)
        except JobError as error:
            self._list(error.problems)
        else:
            ui.navigate.to("/queue")

    def _load(self) -> None:
        if name := self._template.value:
            values, lines = start_values(self._place, template=name)
            self._fields.put(values)
            self._list(lines, "Not taken over")

    async def _delete(self) -> None:
        name = self._template.value
        if name and await confirmed(f"Delete the template {name}?", "Delete"):
            self._written(lambda: delete_template(self._place, name), "deleted", name, None)

    async def _save(self) -> None:
        found = self._draft()
        if wrong := [one for one in found.problems if one.field not in _START]:
            self._list(wrong)
            return
        name = await asked_name("Name of the template", self._template.value or "")
        replaced = name in template_names(self._place)
        if name and (not replaced or await confirmed(f"Replace the template {name}?", "Replace")):
            values = self._changed()
            self._written(lambda: save_template(self._place, name, values), "saved", name, name)

    def _written(self, act: Callable[[], None], done: str, name: str, chosen: str | None) -> None:
        try:
            act()
        except JobError as error:
            self._list(error.problems)
        else:
            self._template.set_options(template_names(self._place), value=chosen)
            ui.notify(f"{name} is {done}")

    def _show_command(self) -> None:
        if self._complete() is not None:
            show_text("As command", shlex.join(train_command(self._draft().params)))


def _scroll_to(selector: str) -> None:
    ui.run_javascript(f"document.querySelector('{selector}')?.scrollIntoView()")
