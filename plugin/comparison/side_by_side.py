"""Comparison of runs as a whole: everything that `compare` prints and that a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .curves import Axis
from .notes import comparison_notes
from .parameters import ByRun, Comparability, comparability, differing
from .results import ResultRow, eval_last, results
from .runs import Run, axis_of


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Runs, and what is known of them together."""

    runs: Sequence[Run]
    axis: Axis
    compared: Comparability | None  # of those with an evaluation loss; None: fewer than two
    differ: dict[str, ByRun]  # settings
    rows: list[ResultRow]
    notes: list[str]

    @property
    def labels(self) -> list[str]:
        return [run.label for run in self.runs]


def side_by_side(runs: Sequence[Run]) -> SideBySide:
    """Compare runs that were read."""
    evaluated = [run for run in runs if eval_last(run)]
    compared = comparability(evaluated) if len(evaluated) > 1 else None
    return SideBySide(
        runs=runs,
        axis=axis_of(runs),
        compared=compared,
        differ=differing(runs),
        rows=results(runs, compared),
        notes=list(comparison_notes(runs, compared)),
    )
