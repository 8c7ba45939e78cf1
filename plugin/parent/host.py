"""Protocol of a host, which asks for runs: one class in hosts/ has these members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..base.errors import Problem
from ..run.events import Event
from ..run.folder import RunFolder
from ..run.outcome import Outcome
from .launch import LaunchPlan


class Host(Protocol):
    @property
    def stop_grace_s(self) -> float:
        """Seconds that the workers have from a signal to their end.

        Infinite where nobody kills the parent meanwhile.
        """
        ...

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        """Receive the plan: the run folder exists, the workers start next."""
        ...

    def line(self, text: str) -> None:
        """Show one line of log."""
        ...

    def event(self, event: Event) -> None:
        """Receive one event of events.jsonl, as it appears."""
        ...

    def stop_wanted(self) -> bool:
        """Return True once the host's own stop button was pressed; called ten times a second."""
        ...

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        """Receive the outcome, once: the workers have ended and run.json is complete."""
        ...


class JobHost(Host, Protocol):
    """A host that shows jobs, also those that were refused before a run folder existed."""

    def failed(self, problems: Sequence[Problem]) -> None:
        """Report the problems of a job as its outcome."""
        ...
