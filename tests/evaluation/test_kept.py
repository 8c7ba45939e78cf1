"""Answers kept of an evaluation: found by content, whatever a kill left of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import limited_files

from plugin.base.errors import JobError
from plugin.evaluation.kept import Kept, content_key


def test_answers_are_found_again_by_a_later_program(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "a" / "requests.jsonl")
    kept.put("one", {"nfe": 3})
    assert Kept(tmp_path / "a" / "requests.jsonl").get("one") == {"nfe": 3}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_line_that_a_kill_cut_off_is_dropped_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "requests.jsonl"
    first = Kept(path)
    first.put("one", {"nfe": 1})
    first.put("two", {"nfe": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    second = Kept(path)
    assert (second.get("one"), second.get("two")) == ({"nfe": 1}, None)
    second.put("three", {"nfe": 3})
    third = Kept(path)
    assert [third.get(key) for key in ("one", "three")] == [{"nfe": 1}, {"nfe": 3}]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "requests.jsonl")
    with limited_files(64), pytest.raises(JobError, match="out: expected") as full:
        kept.put("one", {"text": "x" * 100})
    assert full.value.code == 7


def test_lines_of_something_else_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('7\n{"key": 1}\nnoise\n[]\n{"key": "one", "value": {"nfe": 1}}\n')
    assert Kept(path).get("one") == {"nfe": 1}


def test_link_is_not_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "requests.jsonl").symlink_to(victim)
    with pytest.raises(JobError, match="out: expected a folder that can be written"):
        Kept(tmp_path / "requests.jsonl")


def test_keys_depend_on_every_part() -> None:
    assert content_key("text", {"steps": 8}, [1, 2]) == content_key("text", {"steps": 8}, [1, 2])
    assert (
        len(
            {
                content_key("a", 1),
                content_key("a", 2),
                content_key("b", 1),
                content_key("a1"),
                content_key("a", [1]),
            }
        )
        == 5
    )
