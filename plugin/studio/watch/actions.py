"""Buttons of a run's page: requests to the run, what follows it, and copies of what it is."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from ...base.errors import JobError, first_line, one_line
from ...run.folder import SAMPLE, SAVE, STOP, RunFolder
from ...run.lock import holder
from ..dialogs import show_text
from ..place import Place
from .programs import main_json, publish_words, tensorboard

REQUESTS = (("Stop and save", STOP), ("Save now", SAVE), ("Sample now", SAMPLE))


class RunActions:
    """The buttons, which are enabled where they have an effect."""

    def __init__(self, place: Place, name: str):
        self._place, self._name = place, name
        self._folder = RunFolder(place.root / name)
        self._live: list[ui.button] = []
        with ui.element("section").classes("panel").props('aria-label="actions"'):
            with ui.element("div").classes("row-of"):
                for words, request in REQUESTS:
                    self._live.append(_button(words, partial(self._ask, request)))
                self._resume = _button("Resume", self._add_resume)
                self._publish = _button("Publish a checkpoint", self._choose_checkpoint)
                _link("Repeat", f"/new?from={quote(name)}")
                _link("Chat", f"/chat?model={quote(name)}")
                _button("TensorBoard", self._open_board)
                with ui.dropdown_button("Copy as", auto_close=True).props("flat dense no-caps"):
                    for words, make in COPIES.items():
                        ui.item(words, on_click=partial(self._copy, make))
            self._why = ui.label().classes("dim")
        for button in (*self._live, self._resume, self._publish):
            button.disable()  # until its status is known

    def update(self, status: str) -> None:
        """Enable what this status allows, and say why the rest is not. Reads the disk."""
        live, saved = status == "running", bool(self._folder.checkpoints())
        for button in self._live:
            button.set_enabled(live)
        self._resume.set_enabled(not live and saved and status != "done")
        self._publish.set_enabled(saved)
        why: list[str] = []
        if not live:
            why.append(f"Stop, save and sample need a running run; this one is {status}.")
        if status == "done":
            why.append("A run that is done has nothing to resume: repeat it.")
        elif not live and not saved:
            why.append("It has no checkpoint to resume from or to publish.")
        elif live:
            why.append("Resume needs a run that has ended.")
        self._why.set_text(" ".join(why))

    def _ask(self, request: str) -> None:
        if not holder(self._folder.path):
            ui.notify("The run has ended; nobody would answer.", type="warning")
            return
        with _errors_said(request):
            self._folder.ask(request)
            ui.notify(f"{request} is asked for; the run answers after its current step.")

    async def _add_resume(self) -> None:
        with _errors_said():
            job = await asyncio.to_thread(resume_in_queue, self._place.root, self._folder)
            ui.notify(f"Added to the queue as {one_line(job)}.")

    async def _open_board(self) -> None:
        ui.notify("TensorBoard is starting; it takes a few seconds.")
        with _errors_said():
            address = await tensorboard(self._folder.path)
            with ui.dialog(value=True), ui.card():
                ui.label(
                    "TensorBoard runs until the studio ends. It asks for no token: everyone on "
                    "this machine can open it."
                )
                ui.link(address, address, new_tab=True).classes("mono")
            ui.navigate.to(address, new_tab=True)

    def _choose_checkpoint(self) -> None:
        names = [path.name for path in self._folder.checkpoints()][::-1]
        if not names:
            ui.notify("It has no checkpoint any more.")
            return
        with ui.dialog(value=True) as dialog, ui.card().classes("panel"):
            ui.label("Publish a checkpoint").classes("heading")
            ui.label(
                "Writes the model without what only its training needs, merged into its base if "
                "it is an adapter, and compares the logits of what it wrote."
            ).classes("dim")
            chosen = ui.select(names, value=names[0], label="checkpoint").classes("full")
            out = ui.input("folder", value=str(self._out(names[0]))).classes("mono full")
            chosen.on_value_change(lambda event: out.set_value(str(self._out(event.value))))
            result = ui.label().classes("mono")
            with ui.element("div").classes("row-of"):

                async def publish() -> None:
                    button.disable()
                    result.set_text("It is loading, writing and comparing the model ...")
                    folder = Path(out.value or "").expanduser()
                    result.set_text(await self._publish_to(chosen.value, folder))
                    button.enable()

                button = ui.button("Publish", on_click=publish)
                ui.button("Close", on_click=dialog.close).props("flat")

    def _out(self, checkpoint: str) -> Path:
        name = f"{self._name.replace('/', '-')}-{checkpoint.removeprefix('checkpoint-')}"
        return self._place.root / "published" / name

    async def _publish_to(self, checkpoint: str, out: Path) -> str:
        """Publish a checkpoint. Returns the line that says how it went."""
        try:
            base = str(self._folder.read_run().params.get("model_name", ""))
        except (OSError, ValueError, RecursionError) as error:
            return f"run.json: {first_line(error)}"
        words = publish_words(self._folder / checkpoint, base, out)
        found, stderr = await main_json(words)
        if isinstance(found, dict):
            difference = found.get("max_logit_difference", 0.0)
            return f"{found.get('path')}: largest logit difference {difference:.1e}"
        lines = stderr.strip().splitlines()
        return one_line(lines[-1]) if lines else "It ended without a word."

    def _copy(self, make: Callable[[RunFolder], str]) -> None:
        with _errors_said():
            text = make(self._folder)
            ui.clipboard.write(text)
            show_text("Copied to the clipboard", text)


def resume_in_queue(root: Path, folder: RunFolder) -> str:
    """Add a job that resumes a run as it was asked for. Returns its name.

    Raises JobError, and OSError or ValueError for a run.json that cannot be read.
    """
    # With the parameters' modules: not at the first page.
    from ...queue.folder import Queue
    from ...queue.names import clean

    params = folder.read_run().params
    values = {**params, "run_dir": str(folder.path), "resume": "true"}
    return Queue(root).add(values, name=clean(f"resume-{folder.path.name}")).name


def _command(folder: RunFolder) -> str:
    from ...config.parse import parse  # the modules of the form: not at the first page
    from ...parent.check import train_command

    params = parse(_repeated(folder)).params
    return shlex.join(train_command(params))


def _run_json(folder: RunFolder) -> str:
    content = folder.read_run().content()
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def _task_yaml(folder: RunFolder) -> str:
    from ...config.task import task_yaml

    return task_yaml(_repeated(folder))


def _repeated(folder: RunFolder) -> dict[str, object]:
    """Return the parameters that repeat a run in a new folder, as `--config run.json` does."""
    params = folder.read_run().trained_with
    return {name: value for name, value in params.items() if name not in ("run_dir", "resume")}


COPIES: dict[str, Callable[[RunFolder], str]] = {
    "command": _command,
    "run.json": _run_json,
    "task.yaml": _task_yaml,
}


@contextmanager
def _errors_said(file: str = "run.json") -> Generator[None]:
    """Show why a button could not do its work, mostly for want of a readable `file`."""
    try:
        yield
    except JobError as error:
        for problem in error.problems:
            ui.notify(str(problem), type="negative", multi_line=True, timeout=20_000)
    except (OSError, ValueError, RecursionError) as error:
        ui.notify(f"{file}: {first_line(error)}", type="negative")


def _button(words: str, action: Callable[[], None] | Callable[[], Awaitable[None]]) -> ui.button:
    return ui.button(words, on_click=action).props("outline dense padding='4px 12px'")


def _link(words: str, address: str) -> None:
    ui.button(words).props(f'flat dense padding="4px 12px" href="{address}"')
