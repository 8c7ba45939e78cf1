"""Protocol of a host, which asks for runs: one class in hosts/ with these five methods."""

from __future__ import annotations

from typing import Protocol

from ..run.events import Event
from ..run.folder import RunFolder
from ..run.outcome import Outcome
from .launch import LaunchPlan


class Host(Protocol):
    @property
    def stop_grace_s(self) -> float:
        """Seconds from a signal to the end that the workers have; infinite where nobody kills the
        parent meanwhile.
        """
        ...

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        """The run folder exists; the workers start next."""
        ...

    def line(self, text: str) -> None:
        """One line of log."""
        ...

    def event(self, event: Event) -> None:
        """One event of events.jsonl, as it appears."""
        ...

    def stop_wanted(self) -> bool:
        """Whether the host's own stop button was pressed; asked ten times a second."""
        ...

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        """The workers are gone and run.json is whole; called once."""
        ...
