"""Names of runs below a root: what a page may name, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_folders import write_run

from plugin.studio.place import Place


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../out", "a/../../out", "/etc", "out", "a\0", "a" * 300, "\ud800"]
)
def test_name_that_is_no_run_of_the_root_is_none(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "out")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "out")
    assert Place(tmp_path / "root").run_dir(name) is None


def test_run_json_that_is_a_link_is_no_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").symlink_to(folder / "run.json")
    assert Place(tmp_path).run_dir("b") is None
    assert Place(tmp_path).run_dir("a") == folder
