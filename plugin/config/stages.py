"""Stages of one file: parameter sets over those of the file, parsed and checked together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..base.errors import JobError, Problem
from .aliases import ALIASES
from .fields import NAME_PATTERN
from .model_files import check_method
from .params import SCHEMA, Params
from .parse import Parsed, parse
from .wording import quoted

Values = Mapping[str, object]

STAGES = "stages"  # the key of a file; no parameter
PREVIOUS = "previous"  # a model_name: the fused model of the stage before
MOST_STAGES = 100
WEIGHTS = ("model_name", "model_config", "start_from")
# Where a model begins belongs to the first stage alone, and a run's folder to all of them.
_BEGINNING = {*WEIGHTS, "init_from", "tokenizer_name"}
_OF_THE_RUN = {"run_dir", "resume"}
# A length -> other lengths in a lower layer that would win over it, or be ignored.
_OTHER_LENGTHS = {
    "train_steps": {"num_train_epochs", "train_tokens"},
    "train_tokens": {"num_train_epochs", "train_steps"},
    "num_train_epochs": {"train_tokens"},
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: a run of its own in a folder of the full run."""

    number: int  # from 1
    name: str
    folder: Path
    parsed: Parsed
    rooted: Params  # the same, but on the model from which its chain of stages began

    @property
    def field(self) -> str:
        return field_of(self.number)


def field_of(number: int) -> str:
    return f"{STAGES}[{number}]"


def prefixed(problems: Sequence[Problem], number: int) -> list[Problem]:
    """Return problems of a stage whose fields name it: `stages[2].max_length`."""
    return [replace(one, field=f"{field_of(number)}.{one.field}") for one in problems]


def canonical(names: Collection[str]) -> set[str]:
    return {ALIASES.get(name, name) for name in names}


def lay_over(lower: Values, upper: Values) -> dict[str, object]:
    """Return `upper` over `lower`: what `upper` sets, under any name, and other lengths give way."""
    set_above = canonical(upper)
    gone = set_above.union(*(_OTHER_LENGTHS.get(name, ()) for name in set_above))
    return {name: value for name, value in lower.items() if ALIASES.get(name, name) not in gone} | {
        **upper
    }


def without(values: Values, names: Collection[str]) -> dict[str, object]:
    return {name: value for name, value in values.items() if ALIASES.get(name, name) not in names}


def parse_stages(
    content: Values,
    typed: Values,
    run_dir: Path,
    read_config: Callable[[str], Values],
) -> list[Stage]:
    """Return the stages of a file whose values are `content`, `typed` values over all of them.

    `read_config` returns the values of another file that a stage names as `config`. Raises JobError
    (exit 2) with every problem of every stage.
    """
    listed = content[STAGES]
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_STAGES:
        expected = f"a list of 1 to {MOST_STAGES} parameter sets"
        raise JobError(Problem(STAGES, expected, f"a {type(listed).__name__} of another length"))
    top = without(content, {STAGES, *_OF_THE_RUN})
    typed = without(typed, _OF_THE_RUN)
    found: list[Stage] = []
    problems: list[Problem] = []
    for number, entry in enumerate(cast("list[object]", listed), start=1):
        try:
            name, own = _own_values(entry, number, read_config)
            before = found[-1] if found else None
            folder = run_dir / f"{number}-{name}"
            stage = _parse_stage(number, name, folder, before, (top, own, typed))
        except JobError as error:
            problems += error.problems
            continue
        found.append(stage)
        problems += prefixed(_problems_between(before, stage), number) if before else []
    if problems:
        raise JobError(*_once(problems, lay_over(top, typed)))
    return found


def with_typed(content: Values, typed: Values, read_config: Callable[[str], Values]) -> Values:
    """Return the values of a file that means the same alone as `content` with `typed` values.

    Raises JobError (exit 2) as parse_stages does.
    """
    if STAGES not in content or not without(typed, _OF_THE_RUN):
        return lay_over(content, typed)
    parse_stages(content, typed, Path(STAGES), read_config)
    top, over = without(content, {STAGES, *_OF_THE_RUN}), without(typed, _OF_THE_RUN)
    entries: list[object] = []
    for number, entry in enumerate(cast("list[object]", content[STAGES]), start=1):
        name, own = _own_values(entry, number, read_config)
        entries.append({"name": name, **_laid(number, (top, own, over))})
    run = lay_over(content, typed)
    shared = canonical(run) - {"adaptor_name", *_OF_THE_RUN}  # every entry has them now
    return {**without(run, shared), STAGES: entries}


def _own_values(
    entry: object, number: int, read_config: Callable[[str], Values]
) -> tuple[str, dict[str, object]]:
    """Return the name of a stage and its own values: its lines over the file that it names."""
    if not isinstance(entry, Mapping):
        expected, got = "parameters as `name: value`", f"a {type(entry).__name__}"
        raise JobError(Problem(field_of(number), expected, got))
    own = {
        str(name): None if value in ("null", "~") else value
        for name, value in cast("Values", entry).items()
    }
    name = str(own.pop("name", f"stage-{number}"))
    if not re.fullmatch(NAME_PATTERN, name):
        expected = "a name of letters, digits, . _ -"
        raise JobError(Problem(f"{field_of(number)}.name", expected, quoted(name)))
    if "config" in own:
        try:
            own = lay_over(read_config(str(own.pop("config"))), own)
        except JobError as error:
            raise JobError(*prefixed(error.problems, number)) from error
    wrong = [one for one in (STAGES, *sorted(_OF_THE_RUN)) if one in canonical(own)]
    if own.get("resume") in ("false", False):  # of a run.json
        wrong.remove("resume")
        del own["resume"]
    if wrong:
        fix = "It belongs to the full run: the top of the file, or the command line."
        raise JobError(
            *(
                Problem(f"{field_of(number)}.{one}", "nothing in a stage", "one", fix)
                for one in wrong
            )
        )
    return name, own


def _parse_stage(
    number: int,
    name: str,
    folder: Path,
    before: Stage | None,
    layers: tuple[Values, Values, Values],
) -> Stage:
    """Parse the values of a stage from those of the file, its own, and typed ones."""
    _, own, typed = layers
    if number > 1:
        typed = without(typed, _BEGINNING)
    values = _laid(number, layers)
    begins = canonical(own) & set(WEIGHTS)
    follows = number > 1 and (not begins or own.get("model_name") == PREVIOUS)
    last = before.folder if before else folder.parent / "missing"
    if follows:
        values |= {"model_name": str(last / "fused")} if begins else {"start_from": str(last)}
    values["run_dir"] = str(folder)
    try:
        parsed = parse(values, typed=canonical(typed))
    except JobError as error:
        raise JobError(*prefixed(error.problems, number)) from error
    rooted = _rooted(parsed.params, before) if follows and before else parsed.params
    return Stage(number=number, name=name, folder=folder, parsed=parsed, rooted=rooted)


def _laid(number: int, layers: tuple[Values, Values, Values]) -> dict[str, object]:
    """Return the values of a stage: typed ones over its own over those of the file."""
    top, own, typed = layers
    if number > 1:
        top, typed = without(top, _BEGINNING), without(typed, _BEGINNING)
    values = lay_over(lay_over(top, own), typed)
    if "seed" not in canonical(own):  # another order of the data in each stage
        values["seed"] = _seed(values, number)
    return values


def _seed(values: Values, number: int) -> object:
    """Return the seed of a stage; a wrong one as it is, to be refused by its field."""
    given = values.get("seed", SCHEMA["seed"]["default"])
    try:
        return int(str(given)) + number - 1
    except ValueError:
        return given


def _rooted(params: Params, before: Stage) -> Params:
    """Return parameters on the model of the stage where the chain began: it has the same shape."""
    root = before.rooted
    beginning = {
        "model_name": root.model_name,
        "model_config_file": root.model_config_file,
        "start_from": root.start_from,
    }
    beginning["tokenizer_name"] = params.tokenizer_name or root.tokenizer_name
    return params.model_copy(update=beginning)


def _problems_between(before: Stage, stage: Stage) -> list[Problem]:
    """List what a stage cannot take over from the stage before it."""
    params, last = stage.parsed.params, before.parsed.params
    problems: list[Problem] = []
    if params.start_from == str(before.folder):
        if last.lora:
            fix = f"Set model_name {PREVIOUS}: a new run from the fused model."
            problems.append(
                Problem("start_from", "a full model of the stage before", "an adapter", fix)
            )
        if params.optim != last.optim:
            expected = f"{last.optim}, whose states the stage before leaves"
            fix = f"Or set model_name {PREVIOUS}, which starts with a new optimizer."
            problems.append(Problem("optim", expected, params.optim, fix))
    elif params.model_name == str(before.folder / "fused") and not last.fuse_model:
        expected, got = "a fused model of the stage before", "fuse_model false there"
        problems.append(Problem("model_name", expected, got))
    try:
        check_method(stage.rooted)
    except JobError as error:
        problems += error.problems
    return problems


def _once(problems: Sequence[Problem], top: Values) -> list[Problem]:
    """Name a mistake of `top`, which every stage repeats, once and without a stage."""
    bare = [replace(one, field=re.sub(rf"^{STAGES}\[\d+\]\.", "", one.field)) for one in problems]
    try:
        parse(top)
        of_top: tuple[Problem, ...] = ()
    except JobError as error:
        of_top = error.problems
    shared = [one for one in bare if one in of_top]
    own = [one for one, short in zip(problems, bare, strict=True) if short not in of_top]
    return [*dict.fromkeys(shared), *own]


def of_the_run(content: Values, typed: Values) -> dict[str, Any]:
    """Return {run_dir, resume} of a file with stages, as far as they are given."""
    values = lay_over(without(content, {STAGES}), typed)
    return {
        name: str(value)
        for given, value in values.items()
        if (name := ALIASES.get(given, given)) in _OF_THE_RUN and value is not None
    }
