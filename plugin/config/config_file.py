"""Configuration files: YAML or JSON, with every scalar left as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import yaml

from ..base.errors import JobError, Problem, first_line
from .model_files import read_small
from .wording import cut

MOST_CONFIG = 1 << 18  # bytes of a configuration file


def read_config(path: str) -> dict[str, Any]:
    """Read the values of a --config file. Raises JobError (exit 2)."""
    if Path(path).expanduser().is_dir():
        record = Path(path) / "run.json"
        fix = (
            f"Give {record}, which repeats that run."
            if record.expanduser().is_file()
            else "Give the file in it."
        )
        raise JobError(Problem("config", "a YAML or JSON file", f"{path}, which is a folder", fix))
    try:
        content = _json_or_yaml(read_small(Path(path).expanduser(), MOST_CONFIG))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        got = f"{path}: {cut(first_line(error))}"
        raise JobError(Problem("config", "a readable YAML or JSON file", got)) from error
    if not isinstance(content, dict):
        got = f"{path}, which holds a {type(content).__name__}"
        raise JobError(Problem("config", "parameters as `name: value`", got))
    return cast("dict[str, Any]", content)


def _json_or_yaml(text: str) -> Any:
    """Read JSON or YAML, with every scalar left as text.

    To YAML `no` and `off` are booleans and 007 is 7; parse() knows what each field accepts.
    """
    try:  # first, since YAML refuses characters that JSON may hold
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return yaml.load(text, Loader=_PlainLoader)


class _PlainLoader(yaml.BaseLoader):
    """YAML without aliases: nine lines of them expand to a billion words."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(
                f"an alias in line {mark.line + 1}, where every value must be written out"
            )
        return super().compose_node(parent, index)
