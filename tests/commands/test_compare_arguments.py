"""Arguments of `compare` and `plot`: what is refused before any run is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.commands.compare_arguments import CurveRequest, compare_options, plot_options


def refused(*words: object) -> list[str]:
    with pytest.raises(JobError) as error:
        compare_options([*map(str, words)])
    return [str(problem) for problem in error.value.problems]


def test_a_request_has_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [str(tmp_path), "~", "--png", "~/a.png", "--json"]
    assert compare_options(words) == CurveRequest(
        runs=(str(tmp_path), "~"), png=tmp_path / "a.png", json=True
    )
    assert plot_options([str(tmp_path)]) == CurveRequest(
        runs=(str(tmp_path),), png=None, json=False
    )


def test_every_wrong_argument_is_named(tmp_path: Path) -> None:
    found = refused(tmp_path / "a", tmp_path, "x" * 300, "--png", tmp_path)
    assert [text.split(":")[0] for text in found] == ["runs", "runs", "png"]
    assert "which is a folder" in found[-1]


def test_an_option_that_is_unknown_is_refused(tmp_path: Path) -> None:
    assert "Did you mean json?" in refused(tmp_path, "--jsn")[0]
    assert "a value for RUN" in refused()[0]
    with pytest.raises(JobError, match="expected a known option or value"):
        plot_options([str(tmp_path), str(tmp_path)])
