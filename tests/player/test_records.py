"""Saved answers: traces, samples of a run, lines of other programs and half-written ones."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from plugin.player.records import DenoisingRecord, is_trace, saved_answers
from plugin.run.record import NotARecord


def step(number: int, *positions: int, **more: Any) -> dict[str, Any]:
    content = {"step": number, "block": 0, "positions": list(positions), "text": "x"}
    return content | {"ids": list(positions), "tokens": ["x"] * len(positions)} | more


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def read_answers(path: Path) -> list[list[DenoisingRecord]]:
    """Return the steps of each answer in a file; of those that can be read."""
    found: list[list[DenoisingRecord]] = []
    for answer in saved_answers(path):
        with suppress(NotARecord):
            found.append(answer.records)
    return found


def test_a_step_that_is_not_later_begins_the_next_answer(tmp_path: Path) -> None:
    steps = [step(0, 0), step(1, 1), step(0, 0), step(0, 0), step(3, 1)]
    found = read_answers(write(tmp_path / "t.jsonl", *steps))
    assert [[each.step for each in answer] for answer in found] == [[0, 1], [0], [0, 3]]


def test_samples_have_their_prompts_and_figures(tmp_path: Path) -> None:
    line = {"step": 20, "prompt": "Say\nsun.", "expected": "sun", "text": "su", "nfe": 4}
    (found,) = saved_answers(write(tmp_path / "samples.jsonl", line | {"trace": [step(0, 0)]}))
    assert (found.title, found.prompt) == ("step 20: Say sun.", "Say\nsun.")
    assert found.remark == "step 20 of the training; 4 forwards; expected: sun"
    assert [each.positions for each in found.records] == [[0]]


def test_lines_of_other_programs_are_left_out(tmp_path: Path) -> None:
    old = {"step": 0, "block": 0, "positions": [3], "ids": [4], "text": "░░░x"}
    path = write(tmp_path / "t.jsonl", 3, ["step"], {"step": "0"}, {"trace": 4}, old)
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n{"step": 1, "posit')
    ((only,),) = read_answers(path)
    assert (only.tokens, only.positions) == (None, [3])
    assert not is_trace(path)
    assert is_trace(write(tmp_path / "u.jsonl", old))


@pytest.mark.parametrize(
    "wrong",
    [
        {"positions": [-1]},
        {"positions": [10**9]},
        {"tokens": ["a", "b"]},
        {"step": None},
        {"given": [[0]]},
    ],
)
def test_a_step_that_no_page_can_play_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NotARecord):
        DenoisingRecord.read(step(0, 0) | wrong)
    lines = [{"trace": [step(0, 0) | wrong]}, {"trace": [step(0, 0)]}]
    assert len(read_answers(write(tmp_path / "t.jsonl", *lines))) == 1


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(write(tmp_path / "t.jsonl", step(0, 0)))
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link.jsonl", "pipe.jsonl", "missing.jsonl"):
        assert not is_trace(tmp_path / name)
        with pytest.raises(OSError, match=r".jsonl"):
            read_answers(tmp_path / name)
