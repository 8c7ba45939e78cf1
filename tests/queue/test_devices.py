"""Devices of jobs: sets, their words, and which jobs may start together."""

from __future__ import annotations

from typing import Any

import pytest

from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.queue.devices import device_set, shown_devices, startable

FOUR = ["0", "1", "2", "3"]


def params(**values: Any) -> Params:
    return parse({"dataset_name": "d.jsonl", "model_name": "m", **values}).params


@pytest.mark.parametrize(
    ("values", "visible", "names", "words"),
    [
        ({}, FOUR, FOUR, "all"),
        ({}, [], ["cpu"], "cpu"),
        ({"train_device": "cpu"}, FOUR, ["cpu"], "cpu"),
        ({"gpu_ids": "2,0"}, FOUR, ["0", "2"], "0,2"),
        ({"num_processes": 2}, FOUR, ["0", "1"], "0,1"),
        ({"gpu_ids": "1"}, ["5", "7"], ["7"], "1"),
        ({}, ["MIG-a", "MIG-b"], ["MIG-a"], "0"),
    ],
)
def test_device_sets_and_their_words(
    values: dict[str, Any], visible: list[str], names: list[str], words: str
) -> None:
    found = device_set([params(**values)], visible)
    assert (found, shown_devices(found, visible)) == (names, words)


def test_stages_hold_the_devices_of_all() -> None:
    stages = [params(gpu_ids="1"), params(gpu_ids="3"), params(train_device="cpu")]
    found = device_set(stages, FOUR)
    assert (found, shown_devices(found, FOUR)) == (["cpu", "1", "3"], "cpu,1,3")


def test_an_absent_gpu_is_refused() -> None:
    with pytest.raises(JobError, match="gpu_ids"):
        device_set([params(gpu_ids="4")], FOUR)


@pytest.mark.parametrize(
    ("waiting", "busy", "names"),
    [
        ([("a", "0"), ("b", "1"), ("c", "0")], "", ["a", "b"]),
        ([("a", "0"), ("b", "1")], "0", ["b"]),
        ([("all", "01"), ("b", "1")], "0", []),  # b would overtake the job for all
        ([("all", "01"), ("b", "2")], "0", ["b"]),
        ([("a", "0"), ("all", "01"), ("b", "1")], "", ["a"]),
        ([], "0", []),
    ],
)
def test_no_job_overtakes_one_that_needs_its_devices(
    waiting: list[tuple[str, str]], busy: str, names: list[str]
) -> None:
    assert startable(waiting, busy) == names
