"""Page of the queue: the progress of a job, and files that cannot be shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.queue.job import JobRecord
from plugin.queue.shelves import Shelves
from plugin.studio.place import Place
from plugin.studio.queue_page import end_of, listed, progress

NOW = {"phase": "train", "step": 50, "steps": 2000, "percent": 2.5, "heartbeat": "x"}


def test_progress_is_a_share_and_a_line(tmp_path: Path) -> None:
    more = {"loss": 1.25, "eta_seconds": 600.0, "colour": "of a later version"}
    (tmp_path / "progress.json").write_text(json.dumps(NOW | more), encoding="utf-8")
    line = "train: step 50 of 2,000 (2%), loss 1.25, about 10 min left"
    assert progress(str(tmp_path)) == (0.025, line)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"phase": 1}', "[" * 10_000])
def test_half_written_progress_is_a_start(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "progress.json").write_text(text, encoding="utf-8")
    assert progress(str(tmp_path)) == (0.0, "starting")


def test_the_end_of_a_long_log_is_shown_and_no_link(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n" + "x" * 100_000 + "\nlast\n", encoding="utf-8")
    assert end_of(log).endswith("\nlast\n")
    assert len(end_of(log)) == 1 << 16
    (tmp_path / "link").symlink_to(log)
    with pytest.raises(OSError, match="link"):
        end_of(tmp_path / "link")


def test_address_of_an_ended_job_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").touch()
    shelves = Shelves(tmp_path / "queue")
    shelves.make()
    for name, shelf, ended in (("a", "running", ""), ("b", "ended", "2026-01-01")):
        (shelves.path / shelf / f"{name}.yaml").write_text("model_name: m\n")
        record = JobRecord(run_dir=str(tmp_path / "mine"), ended=ended, state="done")
        shelves.write_record(name, record)
    asked: list[str] = []
    run_dir = Place.run_dir
    monkeypatch.setattr(
        Place, "run_dir", lambda self, name: asked.append(name) or run_dir(self, name)
    )
    first = listed(Place(tmp_path))
    assert [(job.name, address) for job, address in first] == [
        ("a", "/run/mine"),
        ("b", "/run/mine"),
    ]
    assert listed(Place(tmp_path), first) == first
    assert len(asked) == 3
