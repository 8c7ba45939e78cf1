"""Rows of a data source as tests write, read and compare them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.data.sources import read_rows


def write(path: Path, *values: object) -> str:
    """Write values as JSON lines. Returns the path as text."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


def rows(spec: object, split: str = "train") -> list[tuple[str, dict[str, object]]]:
    """Read a split as (row id, values)."""
    return [(row.id, row.values) for row in read_rows(str(spec), split)]


def fault(spec: object, split: str = "train") -> str:
    """Read a split that must be refused. Returns the error (exit 3, dataset_name)."""
    with pytest.raises(JobError) as caught:
        rows(spec, split)
    assert {problem.field for problem in caught.value.problems} == {"dataset_name"}
    assert caught.value.code == 3
    return str(caught.value)
