"""Fixtures of the parent's tests: a run folder, and a host that records."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.supervised import Witness

from plugin.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def witness() -> Witness:
    return Witness()
