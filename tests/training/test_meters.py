"""The stopwatch on a simulated GPU: laps are added once the device has finished them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plugin.training.meters import Stopwatch


class Device:
    """A clock that advances on request only: events recorded later have not happened yet."""

    def __init__(self) -> None:
        self.recorded, self.reached = 0.0, 0.0

    def event(self, **_: Any) -> Event:
        return Event(self)


class Event:
    def __init__(self, device: Device):
        self._device, self.at = device, 0.0

    def record(self) -> None:
        self.at = self._device.recorded

    def query(self) -> bool:
        return self.at <= self._device.reached

    def elapsed_time(self, other: Event) -> float:
        assert other.query(), "reading an event that the device has not reached raises"
        return 1000 * (other.at - self.at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    return made


def one_step(watch: Stopwatch, device: Device) -> None:
    """Run forward for 2 s, backward for 3, a read that waits, and an update of 1 s without a wait."""
    watch.start()
    watch.lap("load")
    for kind, seconds in (("forward", 2.0), ("backward", 3.0)):
        device.recorded += seconds
        watch.lap(kind)
    device.reached = device.recorded
    device.recorded += 1.0
    watch.lap("optimizer")
    watch.settle()


def test_stopwatch_adds_the_update_one_step_later(device: Device) -> None:
    watch = Stopwatch(torch.device("cuda"))
    one_step(watch, device)
    taken = watch.take()
    assert (taken["time/forward"], taken["time/backward"], taken["time/optimizer"]) == (
        2.0,
        3.0,
        0.0,
    )
    one_step(watch, device)
    taken = watch.take()
    assert (taken["time/forward"], taken["time/backward"], taken["time/optimizer"]) == (
        2.0,
        3.0,
        1.0,
    )


def test_stopwatch_adds_every_micro_batch(device: Device) -> None:
    watch = Stopwatch(torch.device("cuda"))
    watch.start()
    for _ in range(3):
        device.recorded += 1.0
        watch.lap("forward")
        device.recorded += 2.0
        watch.lap("backward")
    device.reached = device.recorded
    watch.settle()
    taken = watch.take()
    assert (taken["time/forward"], taken["time/backward"]) == (3.0, 6.0)
    assert taken["time/load"] < 1, "work of the CPU is timed by the CPU"
