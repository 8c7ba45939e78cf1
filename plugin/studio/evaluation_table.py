"""Results of `evaluate` as a table: of a run, wherever a page shows it."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from ..base.errors import first_line, one_line
from ..comparison.chart import number_text
from ..comparison.summary import small_json
from ..run.evaluation import EVALUATION_FILE, NORMAL_95, Evaluation
from .frame import plain_table

COLUMNS = ("task", "metric", "value", "95 % interval", "n")


def evaluation_rows(folder: Path) -> tuple[list[list[str]], str]:
    """Return a row for each figure in a run's evaluation.json, and why there are none."""
    try:
        found = Evaluation.read(small_json(folder / EVALUATION_FILE))
    except FileNotFoundError:
        return [], "not evaluated: `main.py evaluate` writes its results here"
    except (OSError, ValueError, RecursionError) as error:
        return [], f"{EVALUATION_FILE}: {one_line(first_line(error))}"
    rows: list[list[str]] = []
    for task, metrics in found.results.items():
        for metric, figure in metrics.items():
            interval = " to ".join(map(number_text, figure.ci95 or ()))
            if not interval and figure.stderr:
                interval = f"± {number_text(NORMAL_95 * figure.stderr)}"
            count = "" if figure.n is None else f"{figure.n:,}"
            named = [one_line(task), one_line(metric)]
            rows.append([*named, number_text(figure.value), interval, count])
    return rows, ""


def show_evaluation(folder: Path) -> None:
    """Show the table, or the reason why there is none."""
    rows, why = evaluation_rows(folder)
    if rows:
        plain_table(COLUMNS, rows)
    else:
        ui.label(why or "no figures").classes("dim")
