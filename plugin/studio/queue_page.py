"""Queue of jobs: what runs and how far it is, what waits, how the others ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from nicegui import run, ui

from ..base.errors import JobError, shown
from ..base.files import read_end
from ..base.redact import redact
from ..comparison.summary import small_json
from ..queue.folder import Queue
from ..queue.job import Job
from ..run.asked import config_values
from ..run.events import ProgressFile
from .dialogs import confirmed, show_text
from .frame import EVERY_S, flat, heading, pause_s
from .place import Place

_MOST_SHOWN = 1 << 16  # bytes of a file, from its end
_MOST_JOBS = 100  # shown of those that wait, and of those that have ended, the newest
_FOCUS = (  # a button that can no longer be pressed gives way to another one of its job
    "const b = document.querySelector({}); "
    "(b?.disabled ? b.closest('.job').querySelector('button:enabled') : b)?.focus()"
)
_GROUPS = {
    "Running": ("running",),
    "Waiting": ("waiting",),
    "Ended": ("done", "stopped", "failed", "cancelled"),
}


async def show_queue(place: Place) -> None:
    """Build the page and keep it current."""
    await _QueuePage(place).update()


def listed(place: Place, before: Sequence[tuple[Job, str]] = ()) -> list[tuple[Job, str]]:
    """Return the jobs, each with the address of its run's page once that is there.

    `before`: an earlier list. Ended jobs, of which there may be hundreds, keep its addresses.
    """
    known = {job.name: address for job, address in before if job.ended}
    return [
        (job, known[job.name] if job.ended and job.name in known else _address(place, job))
        for job in Queue(place.root).jobs()
    ]


def _address(place: Place, job: Job) -> str:
    if not job.run_dir or not Path(job.run_dir).is_relative_to(place.root):
        return ""
    name = Path(job.run_dir).relative_to(place.root).as_posix()
    return f"/run/{quote(name)}" if place.run_dir(name) else ""


def end_of(path: Path) -> str:
    """Return the end of a text file, without keys. Raises OSError."""
    end, _ = read_end(path, _MOST_SHOWN)
    return redact(end.decode(errors="replace"))


def progress(run_dir: str) -> tuple[float, str]:
    """Return the share of a run that is behind it, and its position as one line."""
    try:
        now = ProgressFile.read(small_json(Path(run_dir) / "progress.json"))
        share = float(now.percent) / 100
    except (OSError, ValueError, RecursionError):
        return 0.0, "starting"
    left = "" if now.eta_seconds is None else f", about {float(now.eta_seconds) / 60:.0f} min left"
    loss = "" if now.loss is None else f", loss {float(now.loss):.4g}"
    return share, f"{now.phase}: step {now.step:,} of {now.steps:,} ({share:.0%}){loss}{left}"


class _QueuePage:
    """The page: the jobs as it shows them, and the progress that it keeps current."""

    def __init__(self, place: Place):
        self._place, self._queue = place, Queue(place.root)
        self._shown: list[tuple[Job, str]] | None = None
        self._timer = ui.timer(EVERY_S, self.update, immediate=False)
        self._progress: list[tuple[str, ui.linear_progress, ui.label]] = []
        self._error = ui.label().props("role=alert").classes("problems")
        self._list = ui.element("div").classes("jobs")
        self._kept = ui.element("div")  # of dialogs: a button may go while its own is open

    async def update(self) -> None:
        """Read the queue, and change what differs from the page."""
        try:
            found = await run.io_bound(self._read)
        except OSError as error:
            self._error.set_text(str(error))
            return
        if found is None:  # the server ends
            return
        jobs, spent = found
        self._timer.interval = pause_s(spent)
        if jobs != self._shown:
            self._shown = jobs
            self._build(jobs)
        for run_dir, bar, label in self._progress:
            share, line = progress(run_dir)
            bar.set_value(share)
            label.set_text(line)

    def _read(self) -> tuple[list[tuple[Job, str]], float]:
        began = time.thread_time()
        return listed(self._place, self._shown or ()), time.thread_time() - began

    def _build(self, jobs: Sequence[tuple[Job, str]]) -> None:
        self._list.clear()
        self._progress = []
        with self._list:
            if not jobs:
                ui.label("No job is in the queue.")
                ui.link("Fill the form for a new run", "/new")
            for title, states in _GROUPS.items():
                group = [(job, run_page) for job, run_page in jobs if job.state in states]
                if not group:
                    continue
                heading(f"{title} ({len(group)})")
                for job, address in group[:_MOST_JOBS]:
                    with ui.element("article").classes("job"):
                        self._facts(job)
                        with ui.row().classes("tools"):
                            self._buttons(job, address, len(group))
                if len(group) > _MOST_JOBS:
                    more = f"{len(group) - _MOST_JOBS} more: main.py queue list"
                    ui.label(more).classes("dim")
                if title == "Ended":
                    self._button("Clear ended", "the queue", self._queue.clear).classes("narrow")

    def _facts(self, job: Job) -> None:
        with ui.element("div").classes("grow"):
            ui.label(job.name).classes("name")
            place = f" {job.place}" if job.place else ""
            words = [f"{job.state}{place} on {job.devices}" if job.devices else job.state]
            moments = {"added": job.added, "started": job.started, "ended": job.ended}
            words += [
                f"{word} {time[:19].replace('T', ' ')}" for word, time in moments.items() if time
            ]
            ui.label(", ".join(words)).classes("dim small")
            if job.error:
                ui.label(job.error).classes("problems")
            if job.state == "running":
                bar = ui.linear_progress(0, show_value=False).props(
                    'size=8px rounded aria-label="progress"'
                )
                self._progress.append((job.run_dir, bar, ui.label("starting").classes("small")))

    def _buttons(self, job: Job, address: str, waiting: int) -> None:
        queue, name = self._queue, job.name
        if address:
            ui.link("Run", address).props["aria-label"] = f"Run of {name}"
        if job.state == "waiting":
            for text, place in (("Top", 1), ("Up", job.place - 1), ("Down", job.place + 1)):
                button = self._button(text, name, lambda to=place: queue.move(name, to))
                button.set_enabled(1 <= place <= waiting and place != job.place)
            self._button("Cancel", name, lambda: queue.cancel(name))
        elif job.state == "running":
            question = f"Stop {name} and save its weights?"
            self._button("Stop and save", name, lambda: queue.cancel(name), question)
        else:
            self._button("Try again", name, lambda: queue.add(config_values(job.file)))
        self._button("Job file", name, lambda: Path(job.file))
        if job.state != "waiting":
            self._button("Log", name, lambda: queue.log(name))

    def _button(
        self, text: str, name: str, act: Callable[[], object], question: str = ""
    ) -> ui.button:
        """Add a button that shows a file, or changes the queue and then shows it anew."""

        async def press() -> None:
            with self._kept:
                if not question or await confirmed(question, text):
                    await self._act(act, text, name)

        return flat(text, press, f"{text} {name}")

    async def _act(self, act: Callable[[], object], text: str, name: str) -> None:
        self._error.set_text("")
        found: object = None
        try:
            found = await run.io_bound(act)
            if isinstance(found, Path):
                show_text(f"{text} of {name}", shown(end_of(found)))
        except (JobError, OSError) as error:
            self._error.set_text(str(error))
        await self.update()
        if isinstance(found, Job):  # the list was built anew: the keyboard's place is kept
            words = json.dumps(f"[aria-label={json.dumps(f'{text} {found.name}')}]")
            ui.run_javascript(_FOCUS.format(words))
