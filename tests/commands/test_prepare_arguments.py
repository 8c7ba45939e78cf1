"""Arguments of `prepare`."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.commands.prepare_arguments import prepare_options

GIVEN = ["--config", "a.yaml", "--out", "b"]


def test_typed_parameters_win_over_the_file() -> None:
    options = prepare_options([*GIVEN, "--vocab_size", "512", "--bad_rows", "skip"])
    assert options.typed == {"vocab_size": "512", "bad_rows": "skip"}
    assert (options.out, options.task, options.stop_after) == (Path("b"), (0, 1), "seal")
    assert prepare_options(GIVEN).typed == {}


def test_share_counts_from_one() -> None:
    assert prepare_options([*GIVEN, "--task", "3/7"]).task == (2, 7)
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/2", "1/0"):
        with pytest.raises(JobError, match="task"):
            prepare_options([*GIVEN, "--task", wrong])


@pytest.mark.parametrize("words", [["--num_proc", "0"], ["--stop_after", "never"], ["--near", "1"]])
def test_wrong_argument_is_refused(words: list[str]) -> None:
    with pytest.raises(JobError):
        prepare_options([*GIVEN, *words])
