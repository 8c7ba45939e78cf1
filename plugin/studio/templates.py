"""Templates: named parameters in YAML files that `train --config` takes too; a run to repeat."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..base.errors import JobError, Problem
from ..base.files import is_plain, write_whole
from ..config.fields import NAME_PATTERN
from ..config.params import SCHEMA
from ..config.parse import Draft, draft
from ..queue.content import as_yaml
from ..run.asked import config_values
from .place import Place

Values = Mapping[str, object]


def template_names(place: Place) -> list[str]:
    """List the templates by name."""
    files = [] if place.templates.is_symlink() else sorted(place.templates.glob("*.yaml"))
    return [path.stem for path in files if is_plain(path) and re.fullmatch(NAME_PATTERN, path.stem)]


def _path(place: Place, name: str) -> Path:
    """Return the file of a template. Raises JobError for a name that could be another file's."""
    if not re.fullmatch(NAME_PATTERN, name):
        wanted = "letters, digits, '.', '_' and '-' (1 to 64, first a letter or digit)"
        raise JobError(Problem("template", wanted, repr(name[:100])))
    if place.templates.is_symlink():
        raise JobError(Problem("template", "a folder of templates", f"{place.templates}, a link"))
    return place.templates / f"{name}.yaml"


def read_template(place: Place, name: str) -> Values:
    """Return the values of a template. Raises JobError: there is none, or it cannot be read."""
    if not is_plain(path := _path(place, name)):
        raise JobError(Problem("template", "a template that is there", name))
    return config_values(str(path))


def save_template(place: Place, name: str, values: Values) -> None:
    """Write values as a template, over an earlier one of that name. Raises JobError."""
    path = _path(place, name)
    try:
        place.templates.mkdir(exist_ok=True)
        write_whole(path, as_yaml(values))
    except OSError as error:
        raise JobError(Problem("template", "a file that can be written", str(error))) from error


def delete_template(place: Place, name: str) -> None:
    """Remove a template. Raises JobError."""
    path = _path(place, name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise JobError(Problem("template", "a file that can be removed", str(error))) from error


def start_values(
    place: Place, *, run: str = "", template: str = ""
) -> tuple[dict[str, object], list[str]]:
    """Return the values that the form begins with, and a line on each that it cannot hold.

    They are those of a template, or those that repeat a run: in a new folder, from its beginning.
    """
    try:
        content = read_template(place, template) if template else {}
        if run:
            folder = place.run_dir(run)
            if folder is None or not is_plain(folder / "run.json"):
                raise JobError(Problem("from", "a run of this folder", run))
            values = config_values(str(folder / "run.json"))
            content = {name: value for name, value in values.items() if name != "resume"}
    except JobError as error:
        return {}, [str(problem) for problem in error.problems]
    found = draft(content)
    # A switch cannot show a wrong value at its field, as the others do.
    lost = found.wrong - {name for name, kind in SCHEMA.items() if kind.get("type") != "boolean"}
    lines = [str(one) for one in found.problems if one.field in lost]
    return changed_values(found, content), lines


def changed_values(found: Draft, given: Values) -> dict[str, object]:
    """Return the values that differ from the defaults; wrong ones as they were given."""
    typed = found.params.as_json()
    return {
        name: given.get(name, "") if name in found.wrong else typed[name]
        for name, kind in SCHEMA.items()
        if name in found.wrong or typed[name] != kind["default"]
    }
