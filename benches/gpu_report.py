"""Results of the GPU bench: the file they are kept in, and the table for a screen or the README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from rich.table import Table

COLUMNS = (
    "work",
    "tokens/s",
    "useful MFU",
    "step, ms",
    "first step, s: cold, warm",
    "peak, GB (without weights)",
    "foretold / taken",
    "recompute, compiled, captured",
    "against padded: speed, memory",
    "through main.py",
)


def results_file(folder: Path, device: str) -> Path:
    """Return the file of today's results; `device`: its name, and its driver behind a comma."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.partition(",")[0].lower()).strip("-")
    return folder / f"{slug}-{date.today()}.json"


def save(report: Mapping[str, Any], path: Path) -> None:
    """Write the report; cases that the file holds of the same environment stay in it."""
    kept: dict[str, Any] = {"cases": {}, "groups": {}}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if all(before[name] == report[name] for name in ("device", "versions")):
            kept = before
    merged = {name: {**kept[name], **report[name]} for name in ("cases", "groups")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**report, **merged}, indent=1) + "\n", encoding="utf-8")


def table(report: Mapping[str, Any]) -> Table:
    """Return the table for a screen."""
    shown = Table(title=report["device"])
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "work" else "right")
    for row in _rows(report):
        shown.add_row(*row)
    return shown


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table for the README."""
    versions = report["versions"]
    where = f"{report['device']}, torch {versions['torch']}, {report['date']}"
    lines = [
        f"Measured on one {where}:",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 1)}",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in _rows(report))])


def _rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    for case in report["cases"].values():
        if "error" in case:
            yield [case["title"], f"failed: {case['error']}", *[""] * (len(COLUMNS) - 2)]
            continue
        cold, warm = (case.get(f"first_step_{way}_s") for way in ("cold", "warm"))
        yield [
            case["title"],
            f"{case['tokens_per_s']:,.0f}",
            _shown(case["mfu"], ".1%"),
            f"{case['step_ms']:,.1f}",
            f"{_shown(cold, '.1f')}, {_shown(warm, '.1f')}",
            f"{case['peak_gb']:.2f} ({case['peak_minus_weights_gb']:.2f})",
            _shown(case["foretold_of_taken"], ".2f"),
            ", ".join(
                [
                    case["recompute"],
                    "yes" if case["compile"] else "no",
                    "yes" if case.get("captured") else "no",
                ]
            ),
            _against(case),
            _shown(case.get("worker_ratio"), ".2f"),
        ]


def _against(case: Mapping[str, Any]) -> str:
    reference = case.get("reference")
    if reference is None:
        return ""
    if "error" in reference:
        return f"failed: {reference['error']}"
    return f"{case['vs_padded']:.1f}x, {_shown(case['memory_vs_padded'], '.2f')}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
