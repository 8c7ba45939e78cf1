"""Numbers in words: the task of the demo, its held-out numbers and its last line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from faults.forks import Forks
from helpers.support import ROOT

from examples import demo, spelling
from plugin.data.documents import Documents
from plugin.inference.model import load_for_sampling


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1000, "one thousand"),
        (2013, "two thousand thirteen"),
        (4711, "four thousand seven hundred eleven"),
        (9990, "nine thousand nine hundred ninety"),
        (8021, "eight thousand twenty-one"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert spelling.spelled(number) == words


def test_every_number_has_a_spelling_of_its_own() -> None:
    assert len({spelling.spelled(number) for number in spelling.NUMBERS}) == 9000


def test_share_counts_spellings_to_the_letter() -> None:
    texts = ["one thousand one", "one thousand twoo", "One thousand three", "one thousand four"]
    assert spelling.share_right([1001, 1002, 1003, 1004], texts) == 0.5


NUMBERS = range(1000, 2100)


@pytest.fixture(scope="module")
def short(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the demo's run, four steps long, on fewer numbers."""
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    options = {**demo.TRAINING, "train_steps": "4", "eval_steps": "2", "eval_share": "0.1"}

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        assert command[1:3] == [str(ROOT / "main.py"), "train"]
        made = forks.run(run_dir, *command[3:])
        assert made.code == 0, made.err
        return CompletedProcess(command, made.code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelling.subprocess, "run", run)
        patch.setattr(spelling, "NUMBERS", NUMBERS)
        assert spelling.train(run_dir, **options) == 0
        yield run_dir


def test_tested_numbers_are_those_held_out(short: Path) -> None:
    numbers = spelling.held_out(short)
    trained = Documents.load(short / "data" / "train").rows
    seen = {NUMBERS[int(row.rpartition(":")[2]) - 1] for row in trained}
    assert len(set(numbers)) == spelling.TESTED
    assert len(seen) == 1100 - 110
    assert not seen & set(numbers)


def test_summary_has_the_losses_of_the_run(short: Path) -> None:
    shown: dict[str, Any] = demo.summary(short, 1.234, 0.5)
    result = json.loads((short / "run.json").read_text())["result"]
    assert (shown["share"], shown["seconds"]) == (0.5, 1.2)
    assert shown["eval_loss_first"] == result["eval_loss_first"]
    assert shown["eval_loss_last"] == result["eval_loss"]
    assert shown["eval_loss_published"] == result["published"]["eval_loss"]
    assert shown["eval_loss_published"] <= shown["eval_loss_last"] < shown["eval_loss_first"]


def test_published_model_spells_each_number(short: Path) -> None:
    """It has learned nothing in four steps, but answers."""
    assert len(spelling.spellings(load_for_sampling(str(short)), [1000, 2000])) == 2
