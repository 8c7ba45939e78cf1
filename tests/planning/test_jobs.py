"""Job files: rows of a step split exactly, and files that `train --config` reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.planning.jobs import split_rows, write_job


@pytest.mark.parametrize(
    ("rows", "split"), [(256, (8, 32)), (1, (1, 1)), (6, (6, 1)), (21, (7, 3)), (13, (1, 13))]
)
def test_rows_of_a_device_are_split_exactly(rows: int, split: tuple[int, int]) -> None:
    assert split_rows(rows) == split


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="out: expected a file that can be written"):
        write_job(tmp_path / "file" / "job.yaml", {}, {}, [])
