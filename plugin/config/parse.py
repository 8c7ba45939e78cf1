"""Parsing: the values of a form, a file or a shell become `Params`, or every problem together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from ..base.errors import JobError, Problem, one_line
from .aliases import ALIAS_VALUES, ALIASES
from .fields import yes_or_no
from .params import SCHEMA, Params
from .rules.blocks import schedule_text
from .rules.checks import cross_checks
from .rules.no_effect import inapplicable
from .wording import choices, cut, did_you_mean, expected, quoted

ADVANCED = "advanced"  # a field of the form only: every parameter that has none of its own


@dataclass(frozen=True)
class Parsed:
    params: Params
    notes: tuple[str, ...]  # one line each, for the log


@dataclass(frozen=True)
class Draft:
    """Values that a person still writes: parameters with defaults for wrong fields."""

    params: Params
    problems: tuple[Problem, ...]  # all of them; of wrong fields first
    wrong: frozenset[str]  # names whose own value is not accepted, and unknown names
    notes: tuple[str, ...]  # on unknown names


def parse(
    values: Mapping[str, object],
    *,
    unknown: Literal["error", "note"] = "error",
    typed: Collection[str] = (),
) -> Parsed:
    """Turn form or command-line values into Params.

    Empty strings and None mean "not given". Unknown names are problems on a command line and notes
    in a host, whose forms carry other plugins' keys. `typed`: the names that a user typed on the
    command line; forms always send every default. Raises JobError (exit 2) with every problem.
    """
    found = draft(values, unknown=unknown, typed=typed)
    if found.problems:
        raise JobError(*found.problems)
    return Parsed(found.params, (*found.notes, *inapplicable(found.params)))


def draft(
    values: Mapping[str, object],
    *,
    unknown: Literal["error", "note"] = "error",
    typed: Collection[str] = (),
) -> Draft:
    """Read values as `parse` does, and return the problems instead of raising them."""
    problems: list[Problem] = []
    notes: list[str] = []
    given = _rename_aliases(expand_advanced(_present(_plain(values, problems)), problems), problems)
    for name in [name for name in given if name not in SCHEMA]:
        del given[name]
        hint = did_you_mean(name, [*SCHEMA, *ALIASES])
        shown = one_line(cut(name)) if name.strip() else repr(name)
        if unknown == "error":
            problems.append(Problem(shown, "a known parameter", "an unknown name", hint))
        else:
            notes.append(f"{shown}: not a parameter of this plugin; ignored. {hint}".rstrip())
    params, wrong = _validate(given)
    problems += wrong
    broken = frozenset(problem.field for problem in problems)
    problems += [problem for problem in cross_checks(params, typed) if problem.field not in broken]
    return Draft(params, tuple(problems), broken, tuple(notes))


def _plain(values: Mapping[str, object], problems: list[Problem]) -> dict[str, object]:
    """Remove lists and objects, which no parameter accepts but a schedule of pairs.

    A few lines of YAML make one that no memory holds once it is quoted or compared.
    """
    if "block_schedule" in values:
        values = {**values, "block_schedule": schedule_text(values["block_schedule"])}
    nested = {
        name: "a list" if isinstance(value, list) else "an object"
        for name, value in values.items()
        if _is_nested(value)
    }
    for name, got in nested.items():
        target = ALIASES.get(name, name)
        if target in SCHEMA or target == ADVANCED:
            problems.append(Problem(target, expected(target) if target in SCHEMA else "text", got))
    known = (*SCHEMA, *ALIASES, ADVANCED)
    return {
        name: nested.get(name, value)
        for name, value in values.items()
        if not (name in nested and name in known)
    }


def _is_nested(value: object) -> bool:
    return isinstance(value, list | tuple | set | Mapping)


def expand_advanced(values: Mapping[str, object], problems: list[Problem]) -> dict[str, object]:
    """Replace the form's `advanced` field by its lines, one `name: value` each.

    A line wins over a field of the same name, which forms always send.
    """
    expanded = dict(values)
    for line in str(expanded.pop(ADVANCED, "")).splitlines():
        name, colon, value = (part.strip() for part in line.partition(":"))
        if name and not colon:
            problems.append(Problem(ADVANCED, "one `name: value` a line", quoted(line.strip())))
        elif value:
            expanded[name] = value
    return expanded


def _present(values: Mapping[str, object]) -> dict[str, object]:
    stripped = {
        name: value.strip() if isinstance(value, str) else value for name, value in values.items()
    }
    return {name: value for name, value in stripped.items() if value is not None and value != ""}


def _rename_aliases(values: Mapping[str, object], problems: list[Problem]) -> dict[str, object]:
    given: dict[str, object] = {}
    for name, value in values.items():
        target = ALIASES.get(name, name)
        if words := ALIAS_VALUES.get(name):
            value = words.get(str(yes_or_no(value)), value)
        if target in given and given[target] != value:
            got = f"{quoted(given[target])} and, as {name}, {quoted(value)}"
            problems.append(
                Problem(target, "one value", got, f"{name} is another name of {target}; give one.")
            )
        given[target] = value
    return given


def _validate(given: Mapping[str, object]) -> tuple[Params, list[Problem]]:
    """Return Params and the problems of wrong fields.

    A wrong field has its default, so that the cross-checks still run.
    """
    try:
        return Params.model_validate(given), []
    except ValidationError as error:
        wrong = list(dict.fromkeys(str(item["loc"][0]) for item in error.errors()))
    problems = [
        Problem(name, expected(name), quoted(given[name]), _value_hint(name, given[name]))
        for name in wrong
    ]
    return Params.model_validate(
        {name: value for name, value in given.items() if name not in wrong}
    ), problems


def _value_hint(name: str, given: object) -> str:
    value = given if isinstance(given, str) else ""
    if name == "train_device" and value.lower() in ("mps", "metal", "apple"):
        return "Apple GPUs are not supported; use cpu."
    return did_you_mean(value, choices(name))
