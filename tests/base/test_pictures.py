"""The error where matplotlib, which only pictures need, is missing."""

from __future__ import annotations

import sys

import pytest

from plugin.base.errors import JobError
from plugin.base.pictures import require_matplotlib


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(JobError, match=r"png: expected matplotlib.*pip install matplotlib"):
        require_matplotlib()
