"""Charts as text: dots and marks of curves worked by hand, axes, narrow terminals."""

from __future__ import annotations

import math

import pytest

from plugin.comparison.chart import Look, chart, number_text
from plugin.comparison.curves import Curve

PLAIN = Look(width=40, colour=False, unicode=True)
COLOUR = Look(width=40, colour=True, unicode=True)
FALLING = Curve(x=(0.0, 10.0), y=(3.0, 1.0))
LEVEL = Curve(x=(0.0, 5.0), y=(2.0, 2.0))


def lines(curves: dict[int, Curve], look: Look, rows: int = 3) -> list[str]:
    return ["".join(text for text, _ in line) for line in chart(curves, look, rows=rows, x="step")]


def test_a_falling_line_goes_from_corner_to_corner() -> None:
    found = lines({0: FALLING}, PLAIN)
    assert [line[:10] for line in found] == [
        "       3 │",
        "       2 │",
        "       1 │",
        "         └",
        "          ",
    ]
    drawn = [line[10:] for line in found[:3]]
    assert drawn[0][0] == "•"
    assert drawn[2][29] == "•"
    assert all(sum(row[column] == "•" for row in drawn) >= 1 for column in range(30))
    assert found[-1].split() == ["0", "step", "10"]


def test_colours_draw_braille_dots_of_the_run() -> None:
    (top, _, bottom, *_) = chart({4: FALLING}, COLOUR, rows=3, x="step")
    assert top[1] == ("⠉", 4)  # the upper two dots of the first cell
    assert bottom[-1] == ("⣀", 4)  # the lower two of the last


def test_a_logarithmic_axis_makes_halving_a_straight_line() -> None:
    halving = Curve(x=(0.0, 1.0, 2.0, 3.0, 4.0), y=(16.0, 8.0, 4.0, 2.0, 1.0))
    straight = Curve(x=halving.x, y=(4.0, 3.0, 2.0, 1.0, 0.0))
    drawn = chart({0: halving}, PLAIN, rows=5, x="step", log=True)
    assert [line[1:] for line in drawn[:5]] == [
        line[1:] for line in chart({0: straight}, PLAIN, rows=5, x="step")[:5]
    ]
    assert [line[0][0].split()[0] for line in drawn[:5:2]] == ["16", "4", "1"]


def test_curves_that_cross_share_their_cells() -> None:
    both = lines({0: FALLING, 1: Curve(x=FALLING.x, y=FALLING.y)}, PLAIN)
    marks = [mark for line in both[:3] for mark in line[10:] if mark != " "]
    assert {"•", "×"} == set(marks)


def test_a_shorter_curve_ends_where_its_run_does() -> None:
    (_, middle, *_) = lines({0: FALLING, 1: LEVEL}, PLAIN)
    assert middle[10:].rindex("×") == 15  # the middle of 30 columns


def test_values_that_are_not_finite_leave_a_gap() -> None:
    gap = Curve(x=(0.0, 4.0, 5.0, 6.0, 10.0), y=(1.0, 1.0, math.nan, 2.0, 2.0))
    top, _, bottom, *_ = [line[10:] for line in lines({0: gap}, PLAIN)]
    assert bottom.rstrip() == "•" * 13  # up to 4 of 10, of 30 columns
    assert top.lstrip() == "•" * 13
    assert lines({0: Curve(x=(0.0,), y=(math.inf,))}, PLAIN) == []


@pytest.mark.parametrize("curve", [Curve(x=(3.0,), y=(2.0,)), LEVEL, Curve(x=(1.0,), y=(0.0,))])
def test_a_point_and_a_level_line_are_shown(curve: Curve) -> None:
    assert "•" in "".join(lines({0: curve}, PLAIN))


def test_without_unicode_the_chart_is_ascii() -> None:
    text = "\n".join(lines({0: FALLING, 1: LEVEL}, Look(width=40, colour=True, unicode=False)))
    assert text.isascii()
    assert {"o", "x", "|", "+"} <= set(text)


@pytest.mark.parametrize("width", [1, 23, 24, 31, 500])
def test_a_chart_is_never_wider_than_its_terminal(width: int) -> None:
    found = lines({0: FALLING}, Look(width=width, colour=False, unicode=True))
    assert max(map(len, found), default=0) <= min(width, 100)
    assert bool(found) == (width >= 24)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.5, "2.5"),
        (1234567, "1.235M"),
        (-12_345, "-12.35k"),
        (1e-9, "1.0e-09"),
        (3e12, "3.0e+12"),
    ],
)
def test_numbers_of_an_axis_are_short(value: float, text: str) -> None:
    assert number_text(value) == text
    assert len(text) <= 8
