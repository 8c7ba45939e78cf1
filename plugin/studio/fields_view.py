"""Fields of the form: a widget for each parameter, with its help, its problem and its way back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.validation_element import ValidationElement
from nicegui.elements.mixins.value_element import ValueElement

from ..base.errors import one_line
from ..config.params import GROUPS, SCHEMA
from ..config.parse import Draft
from ..config.rules.no_effect import without_effect
from ..config.wording import expected, form_choices

# The first group, which is open.
_FIRST = "model and data"
_IN_FIRST = ("model_name", "dataset_name", "training_method", "training_stage", "adaptor_name")
_FOLDED = "does not apply"
_MANY_LINES = {"instruction_template", "input_template", "output_template"}
_BOX = "stack-label hide-bottom-space debounce=250"


@dataclass(frozen=True)
class Shown:
    """State of a field as the page shows it."""

    changed: bool = False
    problem: str = ""
    reason: str = ""  # it does not apply, because of this


@dataclass(frozen=True)
class _Field:
    cell: ui.element
    widget: ValueElement[Any]
    below: ui.label | None  # help and problem of a switch; other widgets have lines for them
    reason: ui.label
    reset: ui.button


def grouped() -> dict[str, list[str]]:
    """Return the parameters by their groups, in the order of the form."""
    groups: dict[str, list[str]] = {_FIRST: [*_IN_FIRST]}
    title = ""
    for name in SCHEMA:
        title = GROUPS.get(name, title)
        if name not in _IN_FIRST:
            groups.setdefault(title, []).append(name)
    return groups


def as_widget(name: str, value: object) -> object:
    """Return a value as the widget of its parameter holds it: a yes or no, else text."""
    if SCHEMA[name].get("type") == "boolean":
        return value if isinstance(value, bool) else str(value).lower() in ("true", "yes", "on")
    return str(value).encode(errors="backslashreplace").decode()  # a file may hold half a letter


def states(draft: Draft, values: Mapping[str, object], *, asked: bool) -> dict[str, Shown]:
    """Return the state of every field.

    `asked`: a person asked for a check; before, an empty field is not a mistake yet.
    """
    typed, reasons = draft.params.as_json(), without_effect(draft.params)
    problems: dict[str, str] = {}
    for one in draft.problems:
        if one.field in SCHEMA and (asked or values[one.field] != ""):
            line = f"expected {one.expected}, got {one.got}. {one.fix}".rstrip()
            problems[one.field] = f"{problems.get(one.field, '')} {line}".strip()
    return {
        name: Shown(
            changed=name in draft.wrong or typed[name] != SCHEMA[name]["default"],
            problem=problems.get(name, ""),
            reason=reasons.get(name, ""),
        )
        for name in SCHEMA
    }


class Fields:
    """Widgets of every parameter in their groups, and the values that a person gave them."""

    def __init__(
        self, values: Mapping[str, object], reasons: Collection[str], edited: Callable[[], object]
    ):
        """Build the fields. `reasons`: the names of those that do not apply at first."""
        self.values = {
            name: as_widget(name, values.get(name, kind["default"]))
            for name, kind in SCHEMA.items()
        }
        self._edited, self._quiet = edited, False
        self._fields: dict[str, _Field] = {}
        self._states = dict.fromkeys(SCHEMA, Shown())
        self._groups: dict[str, ui.expansion] = {}
        self._boxes: dict[str, ui.element] = {}
        self._names, self._search = grouped(), ""
        self._at = {
            name: _FOLDED if name in reasons else title
            for title, names in self._names.items()
            for name in names
        }
        for title in (*self._names, _FOLDED):
            self._groups[title] = ui.expansion(title, value=title == _FIRST).classes("group")
            with self._groups[title]:
                self._boxes[title] = ui.element("div").classes("fields")
                with self._boxes[title]:
                    for name in self._members(title):
                        self._fields[name] = self._field(name)

    def _field(self, name: str) -> _Field:
        title, value = SCHEMA[name]["title"], self.values[name]
        with ui.element("div").classes("field").props(f"data-name={name}") as cell:
            widget = _widget(name, value, lambda event: self._take(name, event.value))
            below = None
            if isinstance(widget, ui.switch):
                below = ui.label(_help(name)).classes("dim small")
            reason = ui.label().classes("small reason")
            reason.set_visibility(False)
            shown = str(SCHEMA[name]["default"]) or "nothing"
            reset = ui.button("reset", on_click=lambda: self.put({name: None}, only=(name,)))
            reset.props(f'flat dense size=sm icon=undo aria-label="reset {title}"')
            reset.tooltip(f"changed; the default is {shown}")
            reset.set_visibility(False)
        return _Field(cell, widget, below, reason, reset)

    def _take(self, name: str, value: object) -> None:
        if not self._quiet:
            self.values[name] = "" if value is None else value
            self._edited()

    def put(self, values: Mapping[str, object], only: Collection[str] = tuple(SCHEMA)) -> None:
        """Fill the fields `only`; one that `values` lacks, or holds None of, gets its default."""
        self._quiet = True
        for name in only:
            given = values.get(name)
            value = as_widget(name, SCHEMA[name]["default"] if given is None else given)
            self.values[name] = value
            widget = self._fields[name].widget
            if isinstance(widget, ui.select) and value not in widget.options:
                widget.set_options([*widget.options, value])
            widget.value = value
        self._quiet = False
        self._edited()

    def show(self, now: Mapping[str, Shown]) -> None:
        """Show the states of the fields, and move those that do not apply to their own group."""
        for title, names in self._names.items():
            for name in names:
                before, state = self._states[name], now[name]
                if state == before:
                    continue
                field = self._fields[name]
                self._states[name] = state
                _mark(name, field, state)
                if self._at[name] != (target := _FOLDED if state.reason else title):
                    self._at[name] = target
                    self._move(name, target)
        for title in self._groups:
            self._caption(title)

    def _members(self, title: str) -> list[str]:
        return [name for name, at in self._at.items() if at == title]

    def _move(self, name: str, title: str) -> None:
        self._fields[name].cell.move(self._boxes[title], self._members(title).index(name))

    def _caption(self, title: str) -> None:
        members = [self._states[name] for name in self._members(title)]
        changed, wrong = (
            sum(one.changed for one in members),
            sum(bool(one.problem) for one in members),
        )
        words = [f"{len(members)} fields"] if title == _FOLDED else []
        words += [f"{changed} changed"] if changed else []
        words += [f"{wrong} to correct"] if wrong else []
        self._groups[title].props["caption"] = ", ".join(words)
        if wrong:
            self._groups[title].open()

    def search(self, text: str) -> int:
        """Show only the fields whose name or help holds every word. Returns their number."""
        words = text.lower().split()
        found = 0
        for title, group in self._groups.items():
            hits = 0
            for name in self._members(title):
                kind = SCHEMA[name]
                where = f"{name} {kind['title']} {kind['description']}".lower()
                fits = all(word in where for word in words)
                self._fields[name].cell.set_visibility(fits)
                hits += fits
            group.set_visibility(hits > 0 or not words)
            if words or self._search:
                group.set_value(bool(hits) if words else title == _FIRST)
            found += hits
        self._search = text.strip()
        return found


def _help(name: str) -> str:
    kind = SCHEMA[name]
    chosen = "enum" in kind or kind.get("type") == "boolean"  # the widget shows what there is
    takes = "" if chosen or expected(name) == "text" else f": {expected(name)}"
    return f"{kind['description']} ({name}{takes})"


def _widget(name: str, value: Any, take: Callable[[Any], None]) -> ValueElement[Any]:
    kind = SCHEMA[name]
    title = kind["title"]
    if isinstance(value, bool):
        return ui.switch(title, value=value, on_change=take)
    if "enum" in kind:
        words = form_choices(name)
        words = words if value in words else [*words, value]
        found: ValidationElement[Any] = ui.select(words, label=title, value=value, on_change=take)
    elif name in _MANY_LINES:
        found = ui.textarea(title, value=value, on_change=take).props("autogrow")
    else:
        found = ui.input(title, value=value, on_change=take).props('autocomplete="off"')
    found.without_auto_validation().props(_BOX).props["hint"] = _help(name)
    return found


def _mark(name: str, field: _Field, state: Shown) -> None:
    problem = one_line(state.problem)
    field.cell.classes(
        replace=f"field {'changed' if state.changed else ''} {'wrong' if problem else ''}"
    )
    field.reset.set_visibility(state.changed)
    field.reason.set_text(state.reason)
    field.reason.set_visibility(bool(state.reason))
    if isinstance(field.widget, ValidationElement):
        field.widget.error = problem or None
    elif field.below:
        field.below.set_text(f"{problem} {_help(name)}".strip())
