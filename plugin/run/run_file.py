"""The content of run.json: what was asked for, where it ran, and how it ended."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .outcome import Result
from .record import Record


class Environment(Record):
    """Versions, devices, commit and data of a run."""

    versions: dict[str, str] = {}
    devices: list[str] = []  # GPUs, or cpu
    processes: int | None = None
    git: str | None = None  # this program's commit
    data: str = ""  # digest
    cwd: str = ""
    resumed_from: str | None = None  # a checkpoint


class RunFile(Record):
    """The content of run.json; `--config run.json` repeats the run."""

    params: dict[str, Any]  # as asked for, by public name
    environment: Environment = Field(default_factory=Environment)
    result: Result | None = None  # None until the run ends

    @property
    def trained_with(self) -> dict[str, Any]:
        """Return the parameters that repeat the run: `params`, with what a launcher chose."""
        return self.params | ((self.result and self.result.effective) or {})
