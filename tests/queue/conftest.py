"""Queue without a worker of its own: the test holds the worker's lock and makes its turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plugin.queue.folder import Queue
from plugin.queue.shelves import JobFile, Shelves
from plugin.queue.worker import Children, turn

JOB: dict[str, Any] = {"dataset_name": "missing.jsonl", "model_name": "m", "train_device": "cpu"}


@dataclass
class HeldQueue:
    """A queue, its folders, and the worker that the test is."""

    queue: Queue
    shelves: Shelves
    children: Children = field(default_factory=dict)

    def turn(self) -> bool:
        with self.shelves.locked():
            return turn(self.shelves, self.children)

    def copy_in(self, name: str, text: str, shelf: str = "waiting") -> Path:
        """Write a file as a person does who knows nothing of the queue; it is a minute old."""
        path = self.shelves.path / shelf / name
        path.write_text(text, encoding="utf-8")
        past = path.stat().st_mtime - 60
        os.utime(path, (past, past))
        return path

    def states(self) -> dict[str, str]:
        return {job.name: job.state for job in self.queue.jobs()}

    def file(self, name: str, shelf: str) -> JobFile:
        return next(one for one in self.shelves.files(shelf) if one.name == name)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldQueue]:
    queue = Queue(tmp_path / "root" / "runs")
    shelves = Shelves(queue.root / "queue")
    shelves.make()
    lock = shelves.lock_of_worker()
    assert lock is not None
    held = HeldQueue(queue, shelves)
    yield held
    os.close(lock)
    for child in held.children.values():
        child.kill()
        child.wait()


@pytest.fixture
def job() -> dict[str, Any]:
    """Return the values of a job that train refuses: its data are missing."""
    return dict(JOB)
