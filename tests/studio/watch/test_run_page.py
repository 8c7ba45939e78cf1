"""Page of a run as data: facts, samples and results out of files that may be anything."""

from __future__ import annotations

import json
from pathlib import Path

from plugin.comparison.summary import RunSummary
from plugin.studio.watch.run_page import done_share, fact_words, read_samples, wait_s


def sample(step: int, prompt: str, text: str) -> str:
    line = {"step": step, "prompt": prompt, "expected": "e", "text": text, "nfe": 2, "trace": []}
    return json.dumps(line) + "\n"


def test_facts_are_words_or_dashes() -> None:
    run = RunSummary(
        name="a", status="running", step=1200, steps=3000, eta_seconds=3725.4, loss=2.34567
    )
    words = fact_words(run)
    assert (words["step"], words["eta_seconds"]) == ("1,200 of 3,000", "1:02:05")
    assert (words["loss"], words["eval_loss"], words["phase"]) == ("2.346", "–", "–")
    assert done_share(run) == 0.4


def test_facts_of_numbers_that_json_lacks() -> None:
    run = RunSummary(name="a", status="failed", loss=float("nan"), eta_seconds=float("inf"))
    assert fact_words(run)["loss"] == "nan"
    assert fact_words(run)["eta_seconds"] == "–"


def test_samples_are_by_prompt_the_newest_first(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    lines = [sample(step, prompt, f"{step}") for step in range(20) for prompt in ("a", "b")]
    file.write_text("".join(lines) + "{half")
    found = read_samples(file)
    assert set(found) == {"a", "b"}
    assert [one.step for one in found["a"]] == [19, 18, 17, 16, 15, 14, 13, 12]


def test_samples_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").mkdir()
    assert read_samples(tmp_path / "samples.jsonl") == {}
    (tmp_path / "link").symlink_to("/etc/hostname")
    assert read_samples(tmp_path / "link") == {}


def test_reading_of_a_long_history_delays_no_later_look() -> None:
    assert [wait_s(looks, 1.5) for looks in range(4)] == [0.1, 2.0, 60.0, 60.0]
