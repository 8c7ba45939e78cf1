"""Pictures of curves: they are drawn for any run, and hold what they should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.run_folders import LINES, evaluated, trained, write_run
from matplotlib import pyplot

from plugin.base.errors import JobError
from plugin.comparison import picture
from plugin.comparison.picture import draw_comparison, draw_run
from plugin.comparison.runs import read_run, read_runs

LONG = [trained(step, 1 + 5 / step, grad_norm=1.0, tokens_per_s=9.0) for step in range(1, 61)]


def test_runs_of_any_kind_are_drawn_together(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "_hidden", LONG),  # without an evaluation, and enough for a mean
        write_run(tmp_path / "$a$ 数", (*LINES, evaluated(20, 2.0))),
        write_run(tmp_path / "nan", [trained(10, math.nan), evaluated(10, math.inf)]),
        write_run(tmp_path / "empty", [], unfinished=True),
    ]
    runs = read_runs([str(folder) for folder in folders])
    draw_comparison(runs, "tokens", tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    for run in runs[1:]:
        draw_run(run, "step", tmp_path / f"{run.folder.name}.png")
    assert not pyplot.get_fignums()


def test_a_legend_names_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    kept = []

    @contextmanager
    def watched(path: Path, **how: object):
        figure, axes = pyplot.subplots(layout="constrained", **how)
        yield figure, axes
        kept.append(figure)
        pyplot.close(figure)

    monkeypatch.setattr(picture, "picture", watched)
    names = ["_a", *(f"run-{number}" for number in range(9))]
    runs = read_runs([str(write_run(tmp_path / name)) for name in names])
    draw_comparison(runs, "step", tmp_path / "a.png")
    (legend,) = kept[0].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == names
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == len(names)
    draw_run(read_run(str(runs[0].folder)), "step", tmp_path / "b.png")
    shown = [axes.get_title() for axes in kept[1].axes if axes.get_visible()]
    assert shown == [
        "Training loss",
        "Evaluation loss, 95 % interval",
        "Evaluation loss by mask ratio",
        "Learning rate",
    ]


def test_a_picture_of_runs_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runs = read_runs([str(write_run(tmp_path / name)) for name in "ab"])
    with pytest.raises(JobError, match="png: expected a PNG file that can be written"):
        draw_comparison(runs, "step", tmp_path / "file" / "a.png")


def test_a_running_mean_is_symmetric_and_skips_nan() -> None:
    """Half of a twentieth of 80 points is 2; the ends have no such neighbours on both sides."""
    values = [float(number) for number in range(80)]
    values[10], values[40] = 100.0, math.nan
    found = picture._smooth(values)
    assert (found[0], found[1], found[2]) == (0.0, 1.0, 2.0)
    assert found[9] == (7 + 8 + 9 + 100 + 11) / 5
    assert math.isnan(found[40])
    assert found[41] == (39 + 41 + 42 + 43) / 4
