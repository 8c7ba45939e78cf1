from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ROOT, read_lines, run_python
from jsonschema import Draft202012Validator, ValidationError

from plugin.run.schema import FILE, document, text

SCHEMA = document()


def errors(name: str, value: object) -> list[ValidationError]:
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}
    return list(Draft202012Validator(schema).iter_errors(value))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_schema_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_committed_schema_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run `make manifest`"


def test_command_prints_the_schema() -> None:
    done = run_python(
        "import runpy, sys; sys.argv[1:] = []; runpy.run_module('plugin.run.schema', run_name='__main__')",
        cwd=ROOT,
    )
    assert done.stdout == text(), done.stderr


def test_files_of_a_run_validate(finished: Path) -> None:
    events = read_lines(finished / "events.jsonl")
    assert {event["type"] for event in events} >= {"log", "progress", "metrics", "checkpoint"}
    assert [found for event in events for found in errors("event", event)] == []
    assert events[-1]["type"] == "finished"
    assert errors("result", events[-1]["result"]) == []
    assert errors("run", read(finished / "run.json")) == []
    assert errors("result", read(finished / "run.json")["result"]) == []
    assert errors("progress", read(finished / "progress.json")) == []
    assert errors("state", read(finished / "checkpoint-4" / "state.json")) == []
    for folder in ("checkpoint-4", "fused"):
        assert errors("facts", read(finished / folder / "diffusion.json")) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("event", {"time": "t", "type": "progress", "step": 1}),
        ("event", {"type": "log", "line": "without a time"}),
        ("event", {"time": "t", "type": "unknown"}),
        ("result", {"outcome": "well"}),
        ("state", {"step": 1}),
        ("facts", {"sampler": {"steps": "many"}}),
        ("run", {"environment": {}}),
    ],
)
def test_other_values_do_not_validate(name: str, wrong: dict[str, Any]) -> None:
    assert errors(name, wrong)
