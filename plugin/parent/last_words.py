"""Cause of a program's death, from its printed lines: its last traceback's error and that one's
cause.
"""

from __future__ import annotations

from collections.abc import Iterable

BEGIN = "Traceback (most recent call last):"
LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
LONGEST = 300


class LastWords:
    """A reader of a program's lines."""

    def __init__(self, lines: Iterable[str] = ()):
        self._inside = False  # among the indented lines of a traceback
        self._linked = False  # the next traceback belongs to the error before it
        self._errors: list[str] = []  # of the last traceback, the first cause first
        for line in lines:
            self.read(line)

    def read(self, line: str) -> None:
        line = line.rstrip()
        if line == BEGIN:
            self._errors = self._errors if self._linked else []
            self._inside, self._linked = True, False
        elif line in LINKS:
            self._linked = True
        elif self._inside and line and not line.startswith(" "):
            self._inside = False
            self._errors.append(line[:LONGEST])

    @property
    def cause(self) -> str:
        """Return `ImportError: ...` and the error it came from; empty without a traceback."""
        if not self._errors:
            return ""
        first, last = self._errors[0], self._errors[-1]
        return last if len(self._errors) == 1 else f"{last} (from {first})"
