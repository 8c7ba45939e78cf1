"""A finished folder in the place of an earlier one: whole at every moment, and nothing of a user's
lost.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.base import files
from plugin.base.files import recover, replace_whole


@pytest.mark.parametrize("swaps", [True, False])
def test_replacing_keeps_what_a_user_added(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that swaps two names in one step, and on one that cannot."""
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for number in range(3):
        (tmp_path / ".part").mkdir()
        (tmp_path / ".part" / "weights").write_text(str(number))
        replace_whole(tmp_path / ".part", tmp_path / "fused")
        assert (tmp_path / "fused" / "weights").read_text() == str(number)
        if number == 1:
            (tmp_path / "fused" / "mine.gguf").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fused", "replaced-fused"]
    assert (tmp_path / "replaced-fused" / "mine.gguf").exists()


def test_a_replacement_that_was_killed_is_ended(tmp_path: Path) -> None:
    (tmp_path / ".fused.earlier").mkdir()
    recover(tmp_path / "fused")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]
    (tmp_path / ".fused.earlier").mkdir()
    recover(tmp_path / "fused")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]
