"""A slow host costs the workers nothing: benches/relay.py measures it, and is tested here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ROOT, child_env, patience

from benches.relay import Block, compare, missed, step_ms, told_steps
from plugin.hosts.plugin_era import sdk
from plugin.hosts.plugin_era.host import TlabHost
from plugin.hosts.plugin_era.job import TlabJob
from plugin.run.events import ProgressEvent

CALL_S = 0.05


class SlowTrainer:
    """The SDK's trainer, with 50 ms for each call."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.data: dict[str, Any] = {}
        self.job = self

    def _take(self) -> None:
        self.calls.append(time.monotonic())
        time.sleep(CALL_S)

    def update_progress(self, percent: int) -> None:
        self._take()

    def add_job_data(self, name: str, value: object) -> None:
        self._take()
        self.data[name] = value

    def get_job_data(self) -> dict[str, Any]:
        self._take()
        return self.data


def progress(step: int, percent: float) -> ProgressEvent:
    """Return an event as the worker writes it."""
    known = ProgressEvent(phase="train", step=step, steps=1000, percent=percent)
    return known.model_copy(update={"eta_seconds": 10.0, "loss": 1.0, "tokens_per_s": 1.0})


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowTrainer:
    trainer = SlowTrainer()
    monkeypatch.setattr(sdk, "_trainer", lambda: trainer)
    return trainer


def test_a_thousand_events_a_second_are_one_report(tmp_path: Path, slow: SlowTrainer) -> None:
    """Events only change the next report; the calls come once a second."""
    output = tmp_path / "experiments" / "e" / "tensorboards" / "t"
    host = TlabHost(TlabJob("1", "t", "e", tmp_path, output, tmp_path / "a", "", {}))
    host.stop_wanted()
    before = len(slow.calls)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        for percent in range(100):
            host.event(progress(percent, percent))
            assert host.stop_wanted() is False
    assert len(slow.calls) == before
    spent = time.monotonic()
    for percent in range(1000):
        host.event(progress(percent, percent / 10))
    assert time.monotonic() - spent < CALL_S, "an event that called the host would take 50 ms"


# --- the bench


def test_the_median_of_pairs_and_its_interval_by_hand() -> None:
    pairs = [
        (100.0 + n, 100.0) for n in range(-8, 9)
    ]  # 17 ratios from -8 % to 8 %, in steps of 1 %
    found = compare(pairs[::2] + pairs[1::2])
    assert found["overhead"] == 0
    assert (found["overhead_low"], found["overhead_high"]) == (
        -0.04,
        0.04,
    )  # ranks 8.5 -+ 4 of 0 to 16
    assert (found["step_ms"], found["relayed_ms"], found["pairs"]) == (100.0, 100.0, 17)
    assert compare([(103.0, 100.0), (51.0, 50.0), (11.0, 10.0)])["overhead"] == pytest.approx(0.03)


def test_the_time_of_a_step_with_and_without_waiting_for_a_core(tmp_path: Path) -> None:
    lines = [("00:00:01.000", 10), ("00:00:02.000", 20), ("00:00:04.000", 30), ("00:00:05.500", 45)]
    events = [
        {"time": f"1970-01-01T{at}+00:00", "type": "metrics", "step": step} for at, step in lines
    ]
    events.insert(2, {"time": events[1]["time"], "type": "progress", "step": 21})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    told = told_steps(tmp_path)
    assert told == [(1.0, 10), (2.0, 20), (4.0, 30), (5.5, 45)]
    # From 1.5 s (step 15) to 4.5 s (step 35): 3 s for 20 steps, 1 s of them in a queue.
    assert step_ms(told, Block(True, 1.5, 4.5, 1.0)) == pytest.approx((150.0, 100.0))


def test_what_the_bench_calls_missed() -> None:
    def row(low: float, share: float) -> dict[str, float]:
        return {"overhead_low": low, "parent_processor_share": share}

    good = {"overhead": {"tlab": row(0.009, 0.009)}, "first_line_s": {"tlab": {"training": 39.0}}}
    bad = {"overhead": {"tlab": row(0.011, 0.011)}, "first_line_s": {"tlab": {"training": 41.0}}}
    assert missed(good) == []
    assert missed(bad) == ["tlab: overhead", "tlab: processor", "tlab: first line"]


@pytest.mark.contract
def test_the_bench_rehearses_to_its_end() -> None:
    done = run_main_of_bench("--rehearse")
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["overhead"]) == {"folder", "tlab"}
    assert all(row["pairs"] == 2 and row["step_ms"] > 0 for row in found["overhead"].values())
    waits = found["first_line_s"]
    assert all(0 < row["run folder"] < row["training"] for row in waits.values())
    assert waits["tlab"]["run folder"] < waits["tlab, asked"]["run folder"], (
        "asking imports the SDK first"
    )


def run_main_of_bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benches" / "relay.py"), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_env(), timeout=patience(500), check=False
    )
    assert done.returncode == 0, done.stderr
    return done
