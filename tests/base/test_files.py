"""Files and folders that appear complete, and lose nothing of a user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.base import files
from plugin.base.files import final_name, recover, whole_folder, write_whole


@pytest.mark.parametrize("swaps", [True, False])
def test_replacing_keeps_what_a_user_added(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that swaps two names in one step, and on one that cannot."""
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for number in range(3):
        with whole_folder(tmp_path / "fused", replaces=True) as part:
            (part / "weights").write_text(str(number))
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


def test_a_folder_that_failed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".fused.part").mkdir()  # of somebody else

    def fail() -> None:
        with whole_folder(tmp_path / "fused") as part:
            (part / "weights").touch()
            assert (part.name, final_name(part.name)) == (".fused.1.part", "fused")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".fused.part"]


def test_a_file_that_failed_leaves_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "run.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "run.json", "\ud800")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("name", "final"),
    [
        (".run.json.77.part", "run.json"),
        (".checkpoint-8.part", "checkpoint-8"),
        (".checkpoint-8.2.part", "checkpoint-8"),
        ("notes.part", ""),
        ("run.json", ""),
    ],
)
def test_temporary_names_are_read_back(name: str, final: str) -> None:
    assert final_name(name) == final
