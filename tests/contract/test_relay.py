"""What a slow host costs the workers: nothing they could wait for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from plugin.hosts import tlab, tlab_sdk
from plugin.hosts.tlab_job import TlabJob

CALL_S = 0.05


class SlowTrainer:
    """The SDK's trainer, each of whose calls takes 50 ms."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.data: dict[str, Any] = {}
        self.job = self

    def _take(self) -> None:
        self.calls.append(time.monotonic())
        time.sleep(CALL_S)

    def progress_update(self, percent: int) -> None:
        self._take()

    def add_job_data(self, name: str, value: object) -> None:
        self._take()
        self.data[name] = value

    def get_job_data(self) -> dict[str, Any]:
        self._take()
        return self.data


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowTrainer:
    trainer = SlowTrainer()
    monkeypatch.setattr(tlab_sdk, "_trainer", lambda: trainer)
    return trainer


def test_a_thousand_events_a_second_are_one_report(tmp_path: Path, slow: SlowTrainer) -> None:
    """Events only change what is reported next; the calls belong to the tick, once a second, whatever the workers write."""
    output = tmp_path / "experiments" / "e" / "tensorboards" / "t"
    host = tlab.TlabHost(TlabJob("1", "t", "e", tmp_path, output, tmp_path / "a", "", {}))
    host.stop_wanted()
    before = len(slow.calls)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        for percent in range(100):
            host.event({"type": "progress", "percent": percent})
            assert host.stop_wanted() is False
    assert len(slow.calls) == before
    spent = time.monotonic()
    for percent in range(1000):
        host.event({"type": "progress", "percent": percent / 10})
    assert time.monotonic() - spent < CALL_S, "an event that called the host would take 50 ms"
