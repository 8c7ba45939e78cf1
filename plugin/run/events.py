"""Events of a run: the lines of events.jsonl, and progress.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..base.errors import Problem
from .outcome import Result
from .record import NotARecord, Number, Record, Text, summary

# The same at every step, and the intervals of buckets: ten more curves that nobody reads alone.
_NO_CURVE = re.compile(r"eval/documents|eval/loss_ci95_t.*")


def utc_now() -> str:
    """Return the time as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _always_written(schema: dict[str, Any]) -> None:
    schema["required"] = ["time", "type", *schema.get("required", ())]


class _Event(Record):
    model_config = ConfigDict(json_schema_extra=_always_written)

    time: str = Field(default_factory=utc_now)

    def model_post_init(self, context: Any, /) -> None:
        self.model_fields_set.update(("time", "type"))  # written although they are defaults


class LogEvent(_Event):
    """One line of log, for people."""

    type: Literal["log"] = "log"
    line: Text


class Standing(Record):
    """Position of a run in its steps."""

    phase: str  # load, train, eval, save or fuse
    step: int  # finished steps
    steps: int  # of the run; 0 while it loads
    percent: Number
    eta_seconds: Number | None = None
    loss: Number | None = None  # of the last step
    tokens_per_s: Number | None = None  # from here on: of the last logged window
    seconds_by_work: dict[str, Number] | None = None
    mfu: Number | None = None
    supervised_tokens_per_s: Number | None = None


class _Progress(_Event):
    type: Literal["progress"] = "progress"


class ProgressEvent(Standing, _Progress):  # time and type first, as in every event
    """Position of a run in its steps, at most once a second."""


class ProgressFile(Standing):
    """The content of progress.json."""

    heartbeat: str  # UTC


class MetricsEvent(_Event):
    """Figures of a logged or evaluated step."""

    type: Literal["metrics"] = "metrics"
    step: int
    metrics: dict[str, Number]


def curves(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are drawn as curves, for people who watch a run elsewhere."""
    return {name: value for name, value in metrics.items() if not _NO_CURVE.fullmatch(name)}


class SampleEvent(_Event):
    """A generated answer to a watched prompt."""

    type: Literal["sample"] = "sample"
    step: int
    prompt: Text
    expected: Text
    text: Text


class ResumedEvent(_Event):
    """The run continues from a checkpoint."""

    type: Literal["resumed"] = "resumed"
    step: int
    path: Text


class CheckpointEvent(_Event):
    """A checkpoint was saved."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Text


class FailedEvent(_Event):
    """A rank failed."""

    type: Literal["failed"] = "failed"
    error: Problem
    rank: int = 0


class FinishedEvent(_Event):
    """The run ended well, or was stopped."""

    type: Literal["finished"] = "finished"
    result: Result


Event = Annotated[
    LogEvent
    | ProgressEvent
    | MetricsEvent
    | SampleEvent
    | ResumedEvent
    | CheckpointEvent
    | FailedEvent
    | FinishedEvent,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event, config=ConfigDict(defer_build=True))


def read_event(line: str) -> Event:
    """Return the event in a line of events.jsonl. Raises NotARecord for any other line."""
    try:
        return EVENT.validate_json(line, extra="ignore")
    except ValidationError as error:
        raise NotARecord(summary(error)) from error
