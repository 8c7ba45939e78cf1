"""Data of the player's page: files of denoisings, their answers, names that lead outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.run_folders import write_run

from plugin.studio.place import Place
from plugin.studio.player_page import chosen, file_of, played

STEP = {"step": 0, "block": 0, "positions": [0], "text": "sun", "tokens": ["sun"], "ids": [3]}
SAMPLE = {"step": 20, "prompt": "Say <b>", "expected": "sun", "nfe": 1, "trace": [STEP]}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = tmp_path / "root"
    run = write_run(root / "stages" / "1-a")
    later = SAMPLE | {"step": 40, "prompt": "last"}
    lines = [SAMPLE, later, SAMPLE | {"trace": [STEP | {"positions": "x"}]}]
    (run / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "{")
    (root / "traces").mkdir()
    (root / "traces" / "t.jsonl").write_text(json.dumps(STEP) + "\n")
    (root / "traces" / "data.jsonl").write_text('{"prompt": "a"}\n')
    (root / "other").mkdir()
    (root / "other" / "t.jsonl").write_text(json.dumps(STEP) + "\n")
    (tmp_path / "secret.jsonl").write_text(json.dumps(STEP) + "\n")
    (root / "traces" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    return Place(root)


def test_a_runs_name_means_its_samples(place: Place) -> None:
    assert file_of(place, "stages/1-a") == place.root / "stages/1-a/samples.jsonl"
    titles = [one.title for one in chosen(place, "stages/1-a").answers]
    assert titles == ["step 20: Say <b>", "step 40: last", "step 20: Say <b>"]


def test_an_answer_is_played_by_its_number(place: Place) -> None:
    page = played(place, "stages/1-a/samples.jsonl", 0, "dark")
    assert page
    assert "Say &lt;b&gt;" in page
    assert 'data-theme="dark"' in page
    broken = played(place, "stages/1-a", None, "")
    assert broken
    assert "it cannot be played: positions" in broken
    assert played(place, "traces/t.jsonl", None, "")
    for number in (-1, 3):
        assert played(place, "stages/1-a", number, "") is None


@pytest.mark.parametrize(
    "name",
    ["../secret.jsonl", "traces/link.jsonl", "stages/1-a/run.json", "missing", "", "/etc/passwd"],
)
def test_other_files_give_a_line_and_no_page(place: Place, name: str) -> None:
    assert chosen(place, name).problem
    assert played(place, name, None, "") is None
