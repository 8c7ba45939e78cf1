"""Typed values of a run's files: written in order, read from files of other versions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pydantic
import pytest

from plugin.base.errors import Code, JobError, Problem
from plugin.config.sampler import SamplerSettings
from plugin.run.events import (
    FailedEvent,
    FinishedEvent,
    LogEvent,
    MetricsEvent,
    ProgressEvent,
    SampleEvent,
    Standing,
    read_event,
)
from plugin.run.facts import AdapterBase, ModelFacts, read_facts
from plugin.run.folder import RunFolder, to_json
from plugin.run.outcome import Outcome, Result
from plugin.run.record import NotARecord
from plugin.run.run_file import Environment, RunFile
from plugin.run.state import STATE, CheckpointState, read_state

STATE_5 = CheckpointState(step=5, pass_=1, position=20, seed=7, step_size=4)
RESULT = Result(outcome="done", steps=3, seconds=1.5, loss=None)


@pytest.mark.parametrize(
    "event",
    [
        LogEvent(line="a\nb"),
        ProgressEvent(phase="train", step=3, steps=9, percent=33.33, mfu=None),
        MetricsEvent(step=3, metrics={"loss": 1.5, "eval/documents": 2}),
        SampleEvent(step=3, prompt="p", expected="e", text="t"),
        FailedEvent(error=Problem("disk", "space", "none", code=Code.DISK), rank=1),
        FinishedEvent(result=RESULT),
    ],
    ids=lambda event: event.type,
)
def test_event_round_trip(event: LogEvent) -> None:
    line = to_json(event.content())
    assert list(json.loads(line))[:2] == ["time", "type"]
    assert read_event(line) == event
    assert to_json(read_event(line).content()) == line


def test_keys_that_were_not_set_are_not_written() -> None:
    begun = Standing(phase="load", step=0, steps=0, percent=0.0, loss=None)
    keys = ["phase", "step", "steps", "percent", "loss"]
    assert list(begun.content()) == keys
    later = begun.model_copy(update={"mfu": None, "tokens_per_s": 2.0})
    assert list(later.content()) == [*keys, "tokens_per_s", "mfu"]


def test_integers_stay_integers() -> None:
    metrics = MetricsEvent(step=1, metrics={"a": 1, "b": 1.0}).content()["metrics"]
    assert json.dumps(metrics) == '{"a": 1, "b": 1.0}'


def test_non_finite_figures_come_back_as_numbers() -> None:
    found = read_event(to_json(MetricsEvent(step=1, metrics={"grad_norm": math.inf}).content()))
    assert isinstance(found, MetricsEvent)
    assert found.metrics == {"grad_norm": math.inf}


def test_a_lone_surrogate_is_escaped() -> None:
    assert SampleEvent(step=1, prompt="\ud800", expected="e", text="t").prompt == "\\ud800"


@pytest.mark.parametrize(
    "line",
    ["", '{"type": "progr', "[]", "3", '{"type": "log"}', '{"time": "t", "line": "l"}'],
)
def test_other_lines_are_no_events(line: str) -> None:
    with pytest.raises(NotARecord):
        read_event(line)


def test_unknown_keys_are_refused_on_write_and_ignored_on_read(tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError):
        Result(outcome="done", other=1)  # pyright: ignore[reportCallIssue]
    line = json.dumps({**LogEvent(line="l").content(), "colour": "red"})
    assert "colour" not in read_event(line).content()
    (tmp_path / STATE).write_text(json.dumps(STATE_5.content() | {"later": {"a": 1}}))
    assert read_state(tmp_path) == STATE_5
    later = {"method": "bert", "later": 1, "sampler": {"steps": 8, "later": 0.5}}
    (tmp_path / "diffusion.json").write_text(json.dumps(later))
    assert read_facts(tmp_path) == ModelFacts(method="bert", sampler=SamplerSettings(steps=8))


def test_missing_keys_of_an_older_file_have_defaults(tmp_path: Path) -> None:
    """An adapter of another tool has no facts; launchers are given a run.json of parameters."""
    assert read_facts(tmp_path) == ModelFacts()
    assert read_facts(tmp_path).content() == {}
    (tmp_path / "run.json").write_text(json.dumps({"params": {"seed": 1}}))
    assert RunFolder(tmp_path).read_run() == RunFile(params={"seed": 1})


@pytest.mark.parametrize("content", ["{", "[]", '{"sampler": {"steps": "many"}}'])
def test_broken_facts_are_a_model_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "diffusion.json").write_text(content)
    with pytest.raises(JobError, match=r"model: expected a readable diffusion.json") as caught:
        read_facts(tmp_path)
    assert caught.value.code == Code.MODEL


def test_facts_without_a_base_hold_no_base() -> None:
    adapter = ModelFacts(method="bert", base=AdapterBase(name="b", digest="d"))
    assert adapter.model_copy(update={"base": None}).content() == {"method": "bert"}


@pytest.mark.parametrize("step", ["5", 5.0, True, None])
def test_a_state_without_a_number_of_steps_is_refused(step: object, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps(STATE_5.content() | {"step": step}))
    with pytest.raises(NotARecord, match="step"):
        read_state(tmp_path)


def test_outcome_record_adds_code_and_error_in_order() -> None:
    assert json.dumps(Outcome("done", Code.OK, result=RESULT).record.content()) == (
        '{"outcome": "done", "code": 0, "error": null, "steps": 3, "seconds": 1.5, "loss": null}'
    )
    error = Problem("worker", "a", "b", "c", Code.HANG)
    assert Outcome("failed", Code.HANG, error).record.content() == {
        "outcome": "failed",
        "code": 9,
        "error": {"field": "worker", "expected": "a", "got": "b", "fix": "c", "code": 9},
    }


def test_run_file_round_trip(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    environment = Environment(versions={"python": "3.11"}, data="d", cwd="/", git=None)
    run = RunFile(params={"seed": 1, "dtype": "auto"}, environment=environment, result=None)
    folder.write_run(run)
    assert folder.read_run() == run
    assert json.loads((tmp_path / "run.json").read_text())["result"] is None
    assert run.trained_with == run.params


def test_trained_with_holds_a_launchers_choice() -> None:
    result = Result(outcome="done", effective={"dtype": "bfloat16"})
    run = RunFile(params={"seed": 1, "dtype": "auto"}, result=result)
    assert run.trained_with == {"seed": 1, "dtype": "bfloat16"}
    assert run.params["dtype"] == "auto"
