"""Rows of a probe: columns, held-out rows, refusals by option."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import write_rows

from plugin.base.errors import JobError
from plugin.evaluation.rows import Column, ProbePairs, columns_of, read_pairs

TEXT = Column(option="text_field", name="text")
LABEL = Column(option="label_field", name="label", kind="label")


def read(path: Path, *, share: float = 0.2, seed: int = 1) -> ProbePairs:
    return read_pairs(str(path), (TEXT, LABEL), key=0, share=share, seed=seed)


def rows(count: int) -> list[dict[str, object]]:
    return [{"text": f"text {n // 2}", "label": n % 3} for n in range(count)]


def test_share_of_the_texts_is_held_out_by_seed(tmp_path: Path) -> None:
    """Fifty distinct texts, two rows each: ten texts are held out, with both rows."""
    path = write_rows(tmp_path / "a.jsonl", rows(100))
    found = read(path)
    assert (len(found.train), len(found.held_out), found.own_split) == (80, 20, False)
    assert not {text for text, _ in found.train} & {text for text, _ in found.held_out}
    assert {label for _, label in found.train} == {"0", "1", "2"}
    assert found == read(path)
    assert found.held_out != read(path, seed=2).held_out


def test_own_eval_split_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", rows(10))
    write_rows(tmp_path / "data" / "test.jsonl", rows(4))
    found = read(tmp_path / "data")
    assert (len(found.train), len(found.held_out), found.own_split) == (10, 4, True)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"label": 1}, "text_field"),
        ({"text": " ", "label": 1}, "text_field"),
        ({"text": 5, "label": 1}, "text_field"),
        ({"text": "a"}, "label_field"),
        ({"text": "a", "label": None}, "label_field"),
        ({"text": "a", "label": 0.5}, "label_field"),
    ],
)
def test_bad_values_are_named_by_option_and_row(
    row: dict[str, object], field: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "b", "label": 2}, row])
    with pytest.raises(JobError) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == (field, 3)
    assert "a.jsonl:2" in problem.got


def test_data_with_one_text_leaves_nothing_to_fit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", rows(2))
    with pytest.raises(JobError, match="rows on both sides, got 0 to fit on, 2 held out"):
        read(path)
    assert columns_of(str(path)) == ("text", "label")
