"""Charts of runs as data: thinned points, patches, options, last values in words."""

from __future__ import annotations

import json
import math
from pathlib import Path

from helpers.run_folders import evaluated, trained, write_run

from plugin.comparison.curves import Curve, HistoryReader, read_history
from plugin.comparison.web_charts import (
    MOST_POINTS,
    Panel,
    Series,
    by_title,
    chart_options,
    loss_panel,
    patches,
    run_panels,
    thinned,
)
from plugin.run.folder import JsonLines


def curve(values: list[float]) -> Curve:
    return Curve(x=tuple(range(len(values))), y=tuple(values))


def panel(*points: list[list[float | None]]) -> Panel:
    lines = [Series(name=str(at), points=one, colour="#000") for at, one in enumerate(points)]
    return Panel(title="t", series=tuple(lines))


def test_short_curve_keeps_its_points_and_not_finite_ones() -> None:
    assert thinned(curve([1.0, math.nan, math.inf])) == [[0, 1.0], [1, None], [2, None]]


def test_long_curve_keeps_peaks_ends_and_the_limit() -> None:
    values = [round(math.sin(at / 50), 6) for at in range(300_000)]
    values[4321], values[777], values[5000], values[-1] = 100.0, -100.0, math.nan, 0.123456789
    found = thinned(curve(values))
    assert MOST_POINTS / 2 < len(found) <= MOST_POINTS
    assert found[0] == [0, 0.0]
    assert [4321, 100.0] in found
    assert [777, -100.0] in found
    assert found[-1] == [299_999, 0.1234568]
    assert [x for x, _ in found] == sorted(x for x, _ in found)


def test_longer_curve_sends_its_new_end_alone() -> None:
    values = [math.sin(at) for at in range(9000)]
    before, now = (panel(thinned(curve(values[:length]))) for length in (8990, 9000))
    ((number, stay, points),) = patches(before, now)
    assert number == 0
    assert len(points) < 10
    assert before.series[0].points[:stay] + points == now.series[0].points


def test_patches_of_equal_and_shorter_curves() -> None:
    a, b = panel([[0, 1.0], [1, 2.0]], [[0, 0.0]]), panel([[0, 1.0]], [[0, 0.0]])
    assert patches(a, a) == []
    assert patches(a, b) == [(0, 1, [])]


def test_panels_of_a_run_hold_losses_band_buckets_and_rate(tmp_path: Path) -> None:
    metrics = (evaluated(0, 5.0, 0.5), trained(10, 1.0), evaluated(30, 2.5))
    found = by_title(run_panels(read_history(write_run(tmp_path / "a", metrics)), "step"))
    assert list(found) == ["Loss", "Held-out loss by share of masked tokens", "Learning rate"]
    training, held_out, band = found["Loss"].series
    assert training.points == [[10, 1.0]]
    assert held_out.points == [[0, 5.0], [30, 2.5]]
    assert band.points == [[0, 4.5, 5.5], [30, 2.4, 2.6]]
    buckets = found["Held-out loss by share of masked tokens"].series
    assert [one.name for one in buckets] == ["0–10 %", "90–100 %"]
    assert found["Loss"].last_values == "training: 1 at step 10; held out: 2.5 at step 30"
    assert found["Learning rate"].last_values == "learning_rate: 0.001 at step 10"


def test_buckets_have_bands_where_intervals_were_logged(tmp_path: Path) -> None:
    bounds = {"eval/loss_ci95_t90_100": 0.5}
    folder = write_run(tmp_path / "a", [evaluated(0, 2.0) | bounds, evaluated(9, 1.0) | bounds])
    panel = by_title(run_panels(read_history(folder), "step"))[
        "Held-out loss by share of masked tokens"
    ]
    assert [(one.name, one.band) for one in panel.series] == [
        ("0–10 %", False),
        ("90–100 %", False),
        ("90–100 %", True),  # of one name: the legend hides both
    ]
    assert panel.series[2].points == [[0, 1.5, 2.5], [9, 0.5, 1.5]]
    assert len({one.colour for one in panel.series[1:]}) == 1


def test_options_are_json_and_offer_a_picture(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "a"))
    options = chart_options(run_panels(history, "step")[0])
    assert json.loads(json.dumps(options)) == options
    assert options["toolbox"]["feature"]["saveAsImage"]["type"] == "png"
    assert [one["type"] for one in options["series"]] == ["line", "line", "custom"]
    assert options["legend"]["data"] == ["training", "held out"]


def test_runs_side_by_side_have_colours_and_dashes_of_their_own() -> None:
    lines = loss_panel("t", [(str(at), curve([1.0, 2.0])) for at in range(20)], "step").series
    assert len({(one.colour, one.dash) for one in lines}) == 20


def test_resumed_run_cuts_its_curves_back(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", (trained(10, 4.0), trained(20, 3.0)))
    reader = HistoryReader(folder)
    assert reader.read_on()
    assert not reader.read_on()
    lines = JsonLines(folder / "metrics.jsonl")
    for line in (trained(11, 3.5), trained(12, 3.4)):
        lines.write(line)
    lines.close()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')
    assert reader.read_on()
    assert reader.history.points("loss") == [(10, 4.0), (11, 3.5), (12, 3.4)]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('ss": 1.0}\n')
    assert reader.read_on()
    assert reader.history.points("loss")[-1] == (13, 1.0)
    assert reader.history == read_history(folder)


def test_rewritten_metrics_are_read_from_their_start(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", (trained(10, 4.0), trained(20, 3.0)))
    reader = HistoryReader(folder)
    reader.read_on()
    (folder / "new").write_text(json.dumps(trained(10, 9.0)) + "\n")
    (folder / "new").replace(folder / "metrics.jsonl")
    assert reader.read_on()
    assert reader.history.points("loss") == [(10, 9.0)]


def test_foreign_bucket_names_have_no_curve(tmp_path: Path) -> None:
    odd = {"eval/loss_tfoo": 1.0, "eval/loss_t1_x": 1.0, "eval/loss_t1_2_3": 1.0}
    folder = write_run(tmp_path / "a", [evaluated(10, 2.0) | odd])
    panels = {one.title: one for one in run_panels(read_history(folder), "step")}
    found = panels["Held-out loss by share of masked tokens"].series
    assert [one.name for one in found] == ["0–10 %", "90–100 %"]
