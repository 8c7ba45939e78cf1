"""Words about runs that are compared: what could not be read, and what does not compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..base.errors import one_line
from .parameters import Comparability, objective_difference, sampler_differences
from .runs import Run


def comparison_notes(runs: Sequence[Run], compared: Comparability | None) -> Iterator[str]:
    """Yield what to know before runs are compared. `compared`: of those with an evaluation loss."""
    for run in runs:
        yield from (f"{run.label}: {note}" for note in run.notes)
    yield from sampler_differences(runs)
    if any(run.evaluation.get("results") for run in runs):
        yield "(low to high) is the 95 % interval of evaluate, over rows or draws"
    if (compared is None or compared.objective) and (note := objective_difference(runs)):
        yield note
    if compared is None:
        return
    yield from compared.reasons
    if compared.holds:
        yield (
            "evaluated on the same documents with the same noise and objective: evaluation losses "
            "compare; ± is half of a 95 % interval over documents, and that of a difference is usually "
            "narrower than shown, because the runs share the documents"
        )


def setting_text(value: Any) -> str:
    """Write a setting for a cell: as a command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None or value == "" else one_line(str(value))
