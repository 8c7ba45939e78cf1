"""JSON Schemas of the files of a run folder, for programs in other languages.

`python -m plugin.run.schema` prints them; `--write` renews docs/schema.json and `--check` fails
when it differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from ..base.files import write_whole
from ..base.process import ROOT
from .evaluation import EVALUATION_FILE, Evaluation
from .events import EVENT, ProgressFile
from .facts import DIFFUSION_FILE, ModelFacts
from .outcome import Result
from .run_file import RunFile
from .stages_file import STAGES_FILE, StagesFile
from .state import STATE, CheckpointState

FILE = ROOT / "docs" / "schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ABOUT = (
    "What this version writes. Keys are stable and later versions add some: a reader ignores those "
    "that it does not know. A number that JSON lacks is written as nan, inf or -inf."
)
MODE: JsonSchemaMode = "serialization"
# Name of a schema -> (the values it describes, the file that holds them).
VALUES: dict[str, tuple[TypeAdapter[Any], str]] = {
    "event": (EVENT, "a line of events.jsonl"),
    "progress": (TypeAdapter(ProgressFile), "progress.json"),
    "run": (TypeAdapter(RunFile), "run.json"),
    "stages": (TypeAdapter(StagesFile), STAGES_FILE),
    "result": (TypeAdapter(Result), "result in run.json and in the event finished"),
    "state": (TypeAdapter(CheckpointState), f"checkpoint-N/{STATE}"),
    "evaluation": (TypeAdapter(Evaluation), EVALUATION_FILE),
    "facts": (TypeAdapter(ModelFacts), f"{DIFFUSION_FILE} of a model, checkpoint or adapter"),
}


def document() -> dict[str, Any]:
    """Return one JSON Schema document with a definition for every name of VALUES."""
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (name, MODE, values) for name, (values, _) in VALUES.items()
    ]
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template="#/$defs/{model}")
    named = {
        name: {"title": f"{name}: {where}", **schemas[name, MODE]}
        for name, (_, where) in VALUES.items()
    }
    return {
        "$schema": DIALECT,
        "title": "Files of a run folder",
        "description": ABOUT,
        "$defs": named | shared["$defs"],
    }


def text() -> str:
    """Return the document as docs/schema.json holds it."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="fail when docs/schema.json differs")
    action.add_argument("--write", action="store_true", help="write docs/schema.json")
    options = parser.parse_args()
    current = text()
    if options.write:
        write_whole(FILE, current)
    elif not options.check:
        print(current, end="")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != current:
        print(f"docs/{FILE.name} differs from plugin/run/: run `make manifest`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
