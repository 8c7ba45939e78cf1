"""Results of `evaluate` as a table: its rows, and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plugin.studio.evaluation_table import evaluation_rows


def test_evaluation_is_rows_of_text(tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "exact": {"value": 0.5, "stderr": 0.1, "n": 1000},
        "ppl": {"value": 12.0, "stderr": None, "ci95": [11.0, 13.0]},
    }
    content = {
        "model": "m",
        "digest": "d",
        "results": {"task\n": figures},
        "tasks": {},
        "sampler": {},
        "likelihood": {},
        "nfe": 3,
        "seconds": 1.0,
        "device": "cpu",
    }
    assert evaluation_rows(tmp_path)[1].startswith("not evaluated")
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert evaluation_rows(tmp_path)[0] == [
        ["task\\n", "exact", "0.5", "± 0.196", "1,000"],
        ["task\\n", "ppl", "12", "11 to 13", ""],
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"results": 3}', "[" * 100_000, "\0"])
def test_an_evaluation_that_cannot_be_read_is_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    rows, why = evaluation_rows(tmp_path)
    assert rows == []
    assert why.startswith("evaluation.json: ")
