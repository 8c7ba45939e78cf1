"""Page of a run: its standing, log, curves, samples and results, as they come."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from ...base.errors import shown
from ...base.files import Version, read_end, version
from ...comparison.chart import number_text
from ...comparison.curves import HistoryReader
from ...comparison.summary import Known, RunSummary, renewed
from ...comparison.web_charts import Panel, run_panels
from ...player.records import SAMPLES
from ...run.evaluation import EVALUATION_FILE
from ...run.events import SampleEvent
from ...run.log_reader import LogPart
from ..evaluation_table import show_evaluation
from ..frame import EVERY_S, frame, heading, pause_s, plain_table
from ..place import Place
from .actions import RunActions
from .chart_view import ChartView
from .log_view import LogView

SOON_S = 0.1  # from the first look, which leaves the curves out, to the second
SAMPLES_BYTES = 1 << 21  # read of the end of samples.jsonl
MOST_ANSWERS = 8  # shown of a prompt, the newest first
_FACTS = {
    "status": "status",
    "phase": "phase",
    "step": "step",
    "eta_seconds": "time left",
    "loss": "loss",
    "eval_loss": "held-out loss",
    "tokens_per_s": "tokens/s",
    "seconds": "took",
    "started": "started (UTC)",
    "method": "method",
}


def pages(place: Place) -> None:
    @ui.page("/run/{name:path}")
    def _(name: str) -> None:
        with frame(name or "Run", here="/"):
            if place.run_dir(name) is None:
                ui.label("There is no run of this name here. It may have been deleted or renamed.")
                ui.link("All runs", "/")
                return
            _LivePage(place, name)


@dataclass(frozen=True, kw_only=True)
class _News:
    """Changes since the last look; None: nothing."""

    run: RunSummary
    log: LogPart | None = None
    panels: Sequence[Panel] | None = None
    answers: dict[str, list[SampleEvent]] | None = None
    evaluated: bool = False
    spent_s: float = 0.0


class _LivePage:
    """Contents of a page of one run, and how far its files were read."""

    def __init__(self, place: Place, name: str):
        self._place, self._name, self._folder = place, name, place.root / name
        self._known: Known | None = None
        self._looks = 0
        self._history = HistoryReader(self._folder)
        self._seen: dict[str, Version] = {}
        self._gone = ui.label().classes("problem").props("role=alert")
        with ui.element("section").classes("panel").props('aria-label="standing"'):
            with ui.element("div").classes("facts"):
                self._facts = {one: _fact(title) for one, title in _FACTS.items()}
            self._bar = ui.linear_progress(0, show_value=False, size="6px")
            self._bar.props('aria-label="steps done"')
            self._error = ui.label().classes("problem")
        self._actions = RunActions(place, name)
        self._charts = ChartView()
        self._log = LogView(self._folder / "log.txt")
        self._samples = ui.element("section").classes("panel")
        self._results = ui.element("section").classes("panel")
        self._samples.set_visibility(False)
        self._results.set_visibility(False)
        self._timer = ui.timer(EVERY_S, self._look)

    async def _look(self) -> None:
        news = await asyncio.to_thread(self._read)
        if news is None:
            self._gone.set_text("This run was deleted or renamed while you looked at it.")
            self._timer.cancel()
            return
        self._timer.interval = wait_s(self._looks, news.spent_s)
        self._looks += 1
        self._show(news)

    def _read(self) -> _News | None:
        """Read what has changed on the disk. Runs in a thread."""
        if self._place.run_dir(self._name) is None:
            return None
        began = time.thread_time()
        self._known = renewed(self._name, str(self._folder), self._known)
        panels = answers = log = None
        with suppress(OSError):  # not written yet
            log = self._log.reader.read_on()
        with suppress(OSError):
            if self._looks and self._history.read_on():  # a long one takes a second
                panels = run_panels(self._history.history, "step")
        if self._changed(SAMPLES):
            answers = read_samples(self._folder / SAMPLES)
        spent = time.thread_time() - began
        return _News(
            run=self._known[1],
            log=log,
            panels=panels,
            answers=answers,
            evaluated=self._changed(EVALUATION_FILE),
            spent_s=spent,
        )

    def _changed(self, name: str) -> bool:
        before = self._seen.get(name)
        with suppress(OSError):
            self._seen[name] = version(self._folder / name)
        return before != self._seen.get(name)

    def _show(self, news: _News) -> None:
        words = fact_words(news.run)
        for name, label in self._facts.items():
            label.set_text(words[name])
        self._facts["status"].classes(replace=f"fact state state-{news.run.status}")
        self._bar.set_value(done_share(news.run))
        self._error.set_text(news.run.error)
        self._actions.update(news.run.status)
        if news.log:
            self._log.add(news.log)
        if news.panels is not None:
            self._charts.show(news.panels)
        if news.answers:
            _show_samples(self._samples, self._name, news.answers)
        if news.evaluated:
            self._results.clear()
            self._results.set_visibility(True)
            with self._results:
                heading("Results of evaluate")
                show_evaluation(self._folder)


def wait_s(looks: int, spent_s: float) -> float:
    """Return the seconds from a look to the next one. `looks`: those before it.

    The second look alone reads all that was logged so far.
    """
    return (SOON_S, EVERY_S)[looks] if looks < 2 else pause_s(spent_s)


def _fact(title: str) -> ui.label:
    with ui.element("div"):
        ui.label(title).classes("fact-name")
        return ui.label("–").classes("fact")


def fact_words(run: RunSummary) -> dict[str, str]:
    """Return the text of every fact that the page shows; a dash where it is not known."""
    step = "" if run.step is None else f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    found = {
        "status": run.status,
        "phase": run.phase,
        "step": step,
        "eta_seconds": _time(run.eta_seconds),
        "loss": _figure(run.loss),
        "eval_loss": _figure(run.eval_loss),
        "tokens_per_s": _figure(run.tokens_per_s),
        "seconds": _time(run.seconds),
        "started": run.started[:16].replace("T", " "),
        "method": run.method,
    }
    return {name: text or "–" for name, text in found.items()}


def done_share(run: RunSummary) -> float:
    if run.status == "done":
        return 1.0
    return min(1.0, run.step / run.steps) if run.step and run.steps else 0.0


def _figure(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _time(seconds: float | None) -> str:
    known = seconds is not None and 0 <= seconds < 1e9
    return str(timedelta(seconds=round(seconds))) if seconds is not None and known else ""


def read_samples(path: Path) -> dict[str, list[SampleEvent]]:
    """Return the answers at the end of samples.jsonl by their prompts, the newest first."""
    found: dict[str, list[SampleEvent]] = {}
    try:
        end, start = read_end(path, SAMPLES_BYTES)
    except OSError:
        return found
    lines = end.split(b"\n")
    for line in lines[1 if start else 0 :][::-1]:
        try:
            answer = SampleEvent.read(json.loads(line))
        except (ValueError, RecursionError):
            continue
        answers = found.setdefault(answer.prompt, [])
        if len(answers) < MOST_ANSWERS:
            answers.append(answer)
    return found


def _show_samples(box: ui.element, name: str, answers: dict[str, list[SampleEvent]]) -> None:
    box.clear()
    box.set_visibility(True)
    with box:
        with ui.element("div").classes("row-of"):
            heading("Samples").classes("grow")
            ui.link("Watch them being written", f"/player?run={quote(name)}")
        for prompt, found in sorted(answers.items()):
            ui.label(shown(prompt)).classes("mono prompt")
            rows = [[f"{one.step:,}", shown(one.text) or "(empty)"] for one in found]
            plain_table(("step", "answer"), [*rows, ["expected", shown(found[0].expected)]])
