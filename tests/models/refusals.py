"""Refusals of model folders, and edits of a config.json that lead to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugin.base.errors import JobError, Problem


def refusal(act: Callable[[], object]) -> Problem:
    with pytest.raises(JobError) as caught:
        act()
    (problem,) = caught.value.problems
    assert problem.code == 4
    return problem


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    fields = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in fields.items() if value is not None})
    )
