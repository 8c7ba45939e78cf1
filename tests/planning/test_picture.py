"""Picture of a fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.planning.fit import Point, fit_method
from plugin.planning.picture import draw_fit

POINTS = [
    Point(
        method="m",
        parameters=round(1e8 * factor * flops / 1e18),
        tokens=1e10 / factor / 6,
        loss=3 + factor + 1 / factor - flops / 1e19,
        run="",
    )
    for flops in (1e18, 4e18)
    for factor in (0.5, 1, 2)
]


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    fit, _ = fit_method("m", POINTS)
    assert fit.parameters
    draw_fit([fit], tmp_path / "new" / "fit.png")
    assert (tmp_path / "new" / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="png: expected a PNG file that can be written"):
        draw_fit([fit_method("m", POINTS)[0]], tmp_path / "file" / "fit.png")
