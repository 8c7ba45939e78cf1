"""Report of an evaluation: what its table shows of each figure."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from plugin.evaluation.report import table
from plugin.run.evaluation import Evaluation


def test_a_figure_has_its_own_n_and_no_empty_interval() -> None:
    figures: dict[str, Any] = {
        "perplexity/2021": {"value": 12.0, "stderr": 1.0, "ci95": [10.0, 14.0], "n": 4},
        "perplexity/2022": {"value": 8.0, "stderr": None, "n": 1},
        "acc": {"value": 0.5, "stderr": None, "ci95": None},
    }
    content = Evaluation.read(
        {
            "model": "m",
            "digest": "d",
            "results": {"t": figures},
            "tasks": {"t": {"rows": 5, "of": 12}},
            "sampler": {},
            "likelihood": {},
            "nfe": 3,
            "seconds": 1.0,
            "device": "cpu",
        }
    )
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table(content))
    shown = [
        [cell.strip() for cell in line.split("│")[3:-1]]
        for line in console.export_text().splitlines()
    ]
    assert [cells for cells in shown if cells] == [
        ["12.0000", "10.0000 to 14.0000", "4"],
        ["8.0000", "-", "1"],
        ["0.5000", "-", "5"],
    ]
