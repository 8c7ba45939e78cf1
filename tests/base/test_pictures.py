"""The error where matplotlib, which only pictures need, is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.support import limited_files

from plugin.base.errors import JobError
from plugin.base.pictures import picture, require_matplotlib


def test_a_full_disk_leaves_the_picture_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "loss.png"
    with picture(file):
        pass
    before = file.read_bytes()
    with (
        pytest.raises(JobError, match="png: expected a PNG file that can be written"),
        limited_files(1000),
        picture(file),
    ):
        pass
    assert file.read_bytes() == before


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(JobError, match=r"png: expected matplotlib.*pip install matplotlib"):
        require_matplotlib()
