"""Curves out of metrics.jsonl: steps logged twice, tokens between logged steps, broken lines."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from helpers.run_folders import evaluated, trained, write_run

from plugin.comparison.curves import (
    BUCKET,
    EVAL_LOSS,
    LONGEST_LINE,
    LOSS,
    MOST_BYTES,
    HistoryReader,
    is_steep,
    read_history,
)


def test_lines_of_a_step_are_merged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [trained(10, 4.0), evaluated(10, 3.0)])
    history = read_history(folder)
    assert history.points(LOSS) == [(10, 4.0)]
    assert history.points(EVAL_LOSS) == [(10, 3.0)]


def test_lines_after_a_resume_replace_later_steps(tmp_path: Path) -> None:
    """Step 25 belongs to weights that the resumed run does not have, and was not logged again."""
    first = [trained(step, step) for step in (10, 20, 25, 30)]
    folder = write_run(tmp_path / "a", [*first, trained(20, 7.0), trained(30, 8.0)])
    assert read_history(folder).points(LOSS) == [(10, 10.0), (20, 7.0), (30, 8.0)]


def test_metrics_that_only_a_later_part_had_are_gone(tmp_path: Path) -> None:
    first = [trained(10, 4.0), evaluated(20, 3.0)]
    history = read_history(write_run(tmp_path / "a", [*first, trained(15, 7.0)]))
    assert history.names("") == ["learning_rate", "loss", "tokens"]
    assert (history.last_step, history.points(LOSS)) == (15, [(10, 4.0), (15, 7.0)])


def test_tokens_between_logged_steps_are_interpolated(tmp_path: Path) -> None:
    lines = [evaluated(0, 5.0), trained(10, 4.0, tokens=100.0), evaluated(15, 3.0)]
    folder = write_run(tmp_path / "a", [*lines, trained(20, 2.0, tokens=300.0), evaluated(25, 1.0)])
    curve = read_history(folder).curve(EVAL_LOSS, "tokens")
    assert curve.x == (0.0, 200.0, 400.0)
    assert curve.margin == (0.1, 0.1, 0.1)


def test_margin_of_a_bucket_is_its_own(tmp_path: Path) -> None:
    line = evaluated(10, 3.0, 0.5) | {"eval/loss_ci95_t00_10": 0.2}
    history = read_history(write_run(tmp_path / "a", [line]))
    assert history.curve("eval/loss_t00_10", "step").margin == (0.2,)
    assert history.curve("eval/loss_t90_100", "step").margin == ()
    assert history.names(BUCKET) == ["eval/loss_t00_10", "eval/loss_t90_100"]


def test_not_a_number_survives_json(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "a", [trained(10, math.nan), trained(20, math.inf), trained(30, 1)]
    )
    curve = read_history(folder).curve(LOSS, "step")
    assert math.isnan(curve.y[0])
    assert curve.y[1:] == (math.inf, 1.0)
    assert curve.finite == 1


@pytest.mark.parametrize(
    ("values", "steep"),
    [
        ([8.0, 1.0], True),
        ([4.0, 1.0], False),
        ([8.0, 0.0], False),
        ([8.0, -1.0], False),
        ([], False),
    ],
)
def test_a_loss_is_steep_that_falls_far(values: list[float], steep: bool) -> None:
    assert is_steep(values) == steep


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[1]", '{"step": "3"}', '{"loss": 1.0}', "[" * 100_000, '{"step": true}'),
        *('{"step": -1}', f'{{"step": {10**30}}}', "0" * (LONGEST_LINE - 1)),
    ],
)
def test_a_broken_line_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "a", [trained(10, 4.0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n\n")
    history = read_history(folder)
    assert (history.broken, history.points(LOSS)) == (1, [(10, 4.0)])


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [trained(10, 4.0, grad_norm="high", mfu=None)])
    assert read_history(folder).names("") == ["learning_rate", "loss", "tokens"]


def test_a_pipe_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    with pytest.raises(OSError, match="not a plain file"):
        read_history(folder)


def test_a_huge_file_is_read_from_near_its_end(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.truncate(2 * MOST_BYTES)
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"step": 7, "loss": 2.0}\n{"half')
    reader = HistoryReader(folder)
    assert reader.read_on()
    assert reader.history.points(LOSS) == [(7, 2.0)]
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'": 1}\n{"step": 8, "loss": 1.0}\n')
    assert reader.read_on()
    assert reader.history.points(LOSS) == [(7, 2.0), (8, 1.0)]
