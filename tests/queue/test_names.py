"""Names of job files: their order, free names, and the renamings of a move."""

from __future__ import annotations

import math

import pytest

from plugin.queue.names import bare, clean, next_number, number_of, order_of, renamings, unused


def test_names_sort_by_number_and_then_by_letters() -> None:
    names = ["b", "00020-a", "100000-z", "00010-x", "a", "00010-c"]
    assert sorted(names, key=order_of) == ["00010-c", "00010-x", "00020-a", "100000-z", "a", "b"]


@pytest.mark.parametrize(
    ("name", "number", "rest"),
    [
        ("00010-a-b", 10, "a-b"),
        ("7-x", 7, "x"),
        ("x", math.inf, "x"),
        ("9999999999-x", math.inf, "9999999999-x"),
        ("12-", math.inf, "12-"),
    ],
)
def test_a_number_is_at_most_nine_digits_and_a_hyphen(name: str, number: float, rest: str) -> None:
    assert (number_of(name), bare(name)) == (number, rest)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("00010-dream.2", "00010-dream.2"),
        ("3-x", "00003-x"),
        ("my job", "my-job"),
        ("<b>\n\x1b[31m</b>", "b-31m-b"),
        ("\udcff", "job"),
        ("-..", "job"),
        ("a" * 240, "a" * 64),
    ],
)
def test_a_cleaned_name_is_one_for_any_disk_or_shell(name: str, wanted: str) -> None:
    assert clean(name) == wanted
    assert clean(wanted) == wanted


def test_a_taken_name_gets_a_count() -> None:
    assert unused("a", {"b"}) == "a"
    assert unused("a", {"a", "a-2"}) == "a-3"


def test_a_new_job_comes_after_all_numbers() -> None:
    assert next_number(()) == 10
    assert next_number({"00010-a", "00017-b", "z"}) == 20
    assert next_number({"00020-a"}) == 30


def moved(waiting: list[str], name: str, place: int) -> list[str]:
    """Return the names after a move; the order of the others holds after each renaming."""
    others = [bare(one) for one in waiting if one != name]
    names = list(waiting)
    for old, new in renamings(waiting, name, place):
        assert new not in names
        names[names.index(old)] = new
        listed = [bare(one) for one in sorted(names, key=order_of)]
        assert [one for one in listed if one != bare(name)] == others
    return sorted(names, key=order_of)


def test_a_move_is_one_renaming_where_a_number_is_free() -> None:
    waiting = ["00010-a", "00020-b", "00030-c"]
    assert renamings(waiting, "00030-c", 1) == [("00030-c", "00005-c")]
    assert renamings(waiting, "00030-c", 2) == [("00030-c", "00015-c")]
    assert renamings(waiting, "00010-a", 3) == [("00010-a", "00040-a")]
    assert renamings(waiting, "00020-b", 2) == []
    assert renamings(waiting, "00010-a", 99) == renamings(waiting, "00010-a", 3)


def test_a_move_takes_no_number_of_a_job_that_runs_or_has_ended() -> None:
    waiting = ["00020-a", "00030-a"]
    assert renamings(waiting, "00030-a", 1, ["00010-a"]) == [("00030-a", "00011-a")]
    full = [f"{number:05d}-a" for number in range(20)]
    (_, last), (_, first) = renamings(waiting, "00030-a", 1, [*full, "00070-b"])
    assert (first, last) == ("00080-a", "00090-a")


@pytest.mark.parametrize(
    "waiting",
    [
        ["00001-a", "00002-b", "00003-c"],
        ["00010-a", "00010-b", "00010-c"],
        ["a", "b", "c"],
        ["00010-a", "b", "c"],
    ],
)
def test_a_move_without_a_free_number_keeps_the_others(waiting: list[str]) -> None:
    assert [bare(one) for one in moved(waiting, waiting[2], 1)] == ["c", "a", "b"]
    assert [bare(one) for one in moved(waiting, waiting[0], 2)] == ["b", "a", "c"]
    assert [bare(one) for one in moved(waiting, waiting[1], 3)] == ["a", "c", "b"]


def test_repeated_moves_to_the_front_never_end() -> None:
    names = ["00010-a", "00020-b", "00030-c"]
    for _ in range(20):
        last = names[-1]
        names = moved(names, last, 1)
        assert bare(names[0]) == bare(last)
