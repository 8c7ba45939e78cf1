"""Report of an evaluation: a table for a terminal, and a section of a model's card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from ..base.errors import one_line
from ..base.files import is_plain, write_whole
from ..run.evaluation import EvaluatedFigure, Evaluation

_BEGIN, _END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
_SECTION = re.compile(rf"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", re.DOTALL)


def table(content: Evaluation) -> Table:
    """Return the results as a table."""
    made = Table("task", "metric", "value", "95 %", "n")
    for task, metric, one in _figures(content):
        made.add_row(task, metric, _number(one.value), _interval(one), _count(content, task, one))
    return made


def lines(content: Evaluation) -> list[str]:
    """Return what was asked and how, for a person: caps, each setting with its tasks, forwards."""
    capped = [
        f"{name}: the first {one.rows} of {one.of} rows; the interval is that of a sample of them"
        for name, one in content.tasks.items()
        if one.limit is not None and one.rows < one.of
    ]
    settings: dict[str, list[str]] = {}
    for name, one in content.tasks.items():
        settings.setdefault(f"sampler: {_settings(one.sampler)}", []).append(name)
        settings.setdefault(f"likelihood: {_settings(one.likelihood)}", []).append(name)
    seconds = f"{float(content.seconds):.1f} s on {content.device}"
    return [
        *capped,
        *(
            line if len(names) == len(content.tasks) else f"{', '.join(names)}: {line}"
            for line, names in settings.items()
        ),
        f"forwards (NFE) of the last evaluation: {content.nfe:,} in {seconds}",
    ]


def write_card_section(folder: Path, content: Evaluation) -> bool:
    """Put the results into a model's README.md, in the place of an earlier evaluation's.

    Returns False for a folder without a card. A folder with digests of its files is left alone.
    """
    card = folder / "README.md"
    if not is_plain(card) or (folder / "digests.json").exists():
        return False
    text = card.read_text(encoding="utf-8")
    section = "\n".join(_card(content)) + "\n"
    text = (
        _SECTION.sub(lambda _: section, text, count=1)
        if _SECTION.search(text)
        else f"{text.rstrip()}\n\n{section}"
    )
    write_whole(card, text)
    return True


def _card(content: Evaluation) -> Iterator[str]:
    yield _BEGIN
    yield "## Evaluation by `main.py evaluate`"
    yield ""
    yield "| task | metric | value | 95 % | n |"
    yield "|---|---|---|---|---|"
    for task, metric, one in _figures(content):
        cells = (task, metric, _number(one.value), _interval(one), _count(content, task, one))
        yield f"| {' | '.join(_plain(cell) for cell in cells)} |"
    yield ""
    for line in lines(content):
        yield f"- {_plain(line)}"
    yield _END


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", one_line(text))


def _figures(content: Evaluation) -> Iterator[tuple[str, str, EvaluatedFigure]]:
    for task, figures in content.results.items():
        for metric, one in figures.items():
            yield task, metric, one


def _number(value: Any) -> str:
    return f"{float(value):.4g}" if abs(float(value)) >= 1000 else f"{float(value):.4f}"


def _interval(one: EvaluatedFigure) -> str:
    if one.ci95 is None:
        return "-"
    low, high = one.ci95
    return f"{_number(low)} to {_number(high)}"


def _count(content: Evaluation, task: str, one: EvaluatedFigure) -> str:
    """Return what is behind a figure: rows, or tokens; the task's rows where it does not say."""
    return f"{content.tasks[task].rows if one.n is None else one.n}"


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
