"""Dialogs of the pages: a text to read and copy, a question, a name."""

from __future__ import annotations

from nicegui import ui

from .frame import heading


def show_text(title: str, text: str) -> None:
    """Show a text that a person may select and copy."""
    with ui.dialog(value=True) as dialog, ui.card().classes("wide-card"):
        heading(title)
        field = ui.textarea(value=text).props("readonly").classes("mono text")
        field.props["aria-label"] = title
        ui.button("Close", on_click=dialog.close).props("flat")
    dialog.on("hide", dialog.delete)


async def confirmed(question: str, yes: str) -> bool:
    """Ask a question. Returns whether it was answered with `yes`."""
    return await _answer(question, yes, None) is not None


async def asked_name(question: str, name: str) -> str:
    """Ask for a name. Returns it; empty if the dialog was left."""
    return await _answer(question, "Save", name) or ""


async def _answer(question: str, yes: str, name: str | None) -> str | None:
    with ui.dialog() as dialog, ui.card():
        label = ui.label(question)
        field = ui.input(value=name or "").props("autofocus")
        field.props["aria-label"] = question
        field.set_visibility(name is not None)
        field.on("keydown.enter", lambda: dialog.submit(field.value))
        with ui.row():
            ui.button(yes, on_click=lambda: dialog.submit(field.value or ""))
            ui.button("Cancel", on_click=lambda: dialog.submit(None)).props("flat")
    dialog.props["aria-label"] = label.text
    answer = await dialog
    dialog.delete()
    return answer
