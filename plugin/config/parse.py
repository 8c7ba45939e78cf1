"""The door of the product: what a form, a file or a shell sends becomes `Params`, or every problem
at once.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pydantic import ValidationError

from ..base.errors import JobError, Problem, one_line
from ..base.redact import MARK, redact
from .methods import methods_with
from .params import (
    ALIASES,
    BUILT,
    MOST_DOCUMENTS,
    NEEDS,
    REPORT_TO,
    SHARDED,
    Params,
    schema,
)
from .wording import cut, did_you_mean, quoted

SCHEMA = schema()
MOST_TEXT = 100_000  # characters of a text
ADVANCED = "advanced"  # a field of the form only: every parameter that has none of its own

# Words for what a string must look like, where a pattern would not help a reader.
_TEXTS = {
    "loss_weight_type": "cart[geo_p:P] with 0 < P <= 1, scheduler or uniform",
    "gpu_ids": '"auto" or positions such as 0,2',
    "adaptor_name": "a name of letters, digits, '.', '_' and '-' (1 to 64, first a letter or digit)",
}


class CommandLine(argparse.ArgumentParser):
    """argparse's own complaints, raised as every other problem is."""

    def error(self, message: str) -> NoReturn:
        raise JobError(self._problem(message))

    def _problem(self, message: str) -> Problem:
        see = f"See {self.prog} --help."
        if found := re.match(
            r"argument (\S+?)(?:/\S+)?: invalid choice: '(.*?)' \(choose from (.+)\)", message
        ):
            name, got, words = found[1], found[2], re.findall(r"[\w-]+", found[3])
            field = name.lstrip("-") if name.startswith("-") else "command"
            return Problem(
                field, f"one of {', '.join(words)}", cut(got), did_you_mean(got, words) or see
            )
        if found := re.match(r"argument --(\w+)\S*: (.+)", message):
            return self._option_problem(found[1], found[2])
        if found := re.match(r"the following arguments are required: (.+)", message):
            names = [name.lstrip("-") for name in found[1].split(", ")]
            return Problem(
                names[0], " and ".join(f"a value for {name}" for name in names), "nothing", see
            )
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            name = found[1].lstrip("-").partition("=")[0]
            known = [
                option.lstrip("-")
                for option in self._option_string_actions
                if option.startswith("--")
            ]
            return Problem(
                cut(name) or "command",
                "an option or a value that belongs here",
                cut(found[1]),
                did_you_mean(name, known) or see,
            )
        return Problem("command", "a command line that can be read", cut(message), see)

    def _option_problem(self, name: str, message: str) -> Problem:
        takes = expected(name) if name in SCHEMA else "a value"
        if message.startswith("expected"):
            fix = f"A value that begins with - is written --{name}=VALUE."
            return Problem(name, takes, "nothing", fix)
        if found := re.match(r"ignored explicit argument '(.*)'", message):
            return Problem(name, "no value, it is a switch", quoted(found[1]))
        if found := re.match(r"invalid \S+ value: '(.*)'", message):
            return Problem(name, "a whole number above 0", quoted(found[1]))
        return Problem(name, takes, cut(message))


@dataclass(frozen=True)
class Parsed:
    params: Params
    notes: tuple[str, ...]  # one line each, for the log


def parse(
    values: Mapping[str, object],
    *,
    unknown: Literal["error", "note"] = "error",
    typed: Collection[str] = (),
) -> Parsed:
    """Turn form or command-line values into Params.

    Empty strings and None mean "not given". Unknown names are problems on a command line and notes
    in a host, whose forms carry other plugins' keys. `typed` are the names a person gave on the
    command line (forms always send every default). Raises JobError (exit 2) with every problem at
    once.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    given = _rename_aliases(
        _expand_advanced(_present(_plain(values, problems)), problems), problems
    )
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
    broken = {problem.field for problem in problems}
    problems += [
        problem
        for problem in (*_unbuilt(params), *_cross_checks(params, typed))
        if problem.field not in broken
    ]
    if problems:
        raise JobError(*problems)
    return Parsed(params, (*notes, *_inapplicable(params)))


def _plain(values: Mapping[str, object], problems: list[Problem]) -> dict[str, object]:
    """Leave out lists and objects, which no parameter takes: a few lines of YAML make one that no
    memory holds once it is quoted or compared.
    """
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


def _expand_advanced(values: Mapping[str, object], problems: list[Problem]) -> dict[str, object]:
    """The form's `advanced` field, one `name: value` a line, as if each had a field of its own; it
    wins over the form's defaults.
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
        if name == "report_to":
            value = REPORT_TO.get(str(value), value)
        if target in given and given[target] != value:
            got = f"{quoted(given[target])} and, as {name}, {quoted(value)}"
            problems.append(
                Problem(target, "one value", got, f"{name} is another name of {target}; give one.")
            )
        given[target] = value
    return given


def _validate(given: Mapping[str, object]) -> tuple[Params, list[Problem]]:
    """Params from `given`, wrong fields at their defaults so that the cross-checks still run, and
    the wrong fields' problems.
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


def expected(name: str) -> str:
    """What a parameter takes, in words: `an integer >= 1`, `one of bert, dream, llada`."""
    return " or ".join(_words(name, kind) for kind in SCHEMA[name].get("anyOf", [SCHEMA[name]]))


def _words(name: str, kind: Mapping[str, Any]) -> str:
    if "const" in kind:
        return repr(kind["const"])
    if "enum" in kind:
        return "one of " + ", ".join(kind["enum"])
    if kind["type"] == "boolean":
        return "true or false"
    if kind["type"] == "string":
        return _TEXTS.get(name, "text")
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(
        f"{sign} {_bound(kind[key])}" for key, sign in signs.items() if key in kind
    )
    return f"{'an integer' if kind['type'] == 'integer' else 'a number'} {bounds}".rstrip()


def _bound(number: float) -> str:
    short = f"{number:g}"
    return (
        short
        if float(short) == number and "e" not in short
        else f"{number:.0f}"
        if number == int(number)
        else short
    )


def choices(name: str) -> list[str]:
    """The words a parameter takes; empty for numbers and free text."""
    kinds = SCHEMA[name].get("anyOf", [SCHEMA[name]])
    return [
        str(word)
        for kind in kinds
        for word in kind.get("enum", [kind["const"]] if "const" in kind else [])
    ]


def _value_hint(name: str, given: object) -> str:
    value = given if isinstance(given, str) else ""
    if name == "train_device" and value.lower() in ("mps", "metal", "apple"):
        return "Apple GPUs are not supported; use cpu."
    return did_you_mean(value, choices(name))


def _unbuilt(params: Params) -> list[Problem]:
    values = params.as_json()
    return [
        Problem(
            name,
            "what this version has: " + " or ".join(_shown(value) for value in built),
            _shown(values[name]),
            "It is planned, not built yet.",
        )
        for name, built in BUILT.items()
        if values[name] not in built
    ]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cross_checks(params: Params, typed: Collection[str]) -> list[Problem]:
    found: list[Problem] = []

    def require(holds: bool, field: str, expected: str, got: str, fix: str = "") -> None:
        if not holds:
            found.append(Problem(field, expected, got, fix))

    require(
        bool(params.dataset_name),
        "dataset_name",
        "a file, folder or hub id",
        "nothing",
        "Give --dataset_name.",
    )
    require(
        bool(params.model_name) != bool(params.model_config_file),
        "model_name",
        "either model_name or model_config",
        "both" if params.model_name else "neither",
        "model_name continues a model; model_config (a config.json) starts a new one.",
    )
    require(
        params.t_min < params.t_max,
        "t_min",
        f"less than t_max ({params.t_max:g})",
        f"{params.t_min:g}",
    )
    cpu_half = params.dtype == "float16" and params.train_device == "cpu"
    require(not cpu_half, "dtype", "float32 on a CPU", "float16", "CPUs do not train in float16.")
    each = params.batch_size * params.gradient_accumulation_steps
    fix = "Or lower gradient_accumulation_steps."
    require(
        each <= MOST_DOCUMENTS,
        "batch_size",
        f"at most {MOST_DOCUMENTS} documents of a step on each device",
        str(each),
        fix,
    )
    quantised, scratch = params.load_in_4bit, bool(params.model_config_file)
    require(
        not quantised or params.lora,
        "load_in_4bit",
        "lora true beside it",
        "lora false",
        "4-bit weights cannot be trained.",
    )
    require(
        not (quantised and scratch),
        "load_in_4bit",
        "a model_name",
        "model_config",
        "New weights cannot stay frozen.",
    )
    require(
        not (params.lora and scratch),
        "lora",
        "a model_name",
        "model_config",
        "A new model has no base to adapt.",
    )
    shares = params.eval_share > 0 or params.eval_strategy == "no"
    require(shares, "eval_share", "more than 0", "0", "eval_strategy no holds nothing out.")
    picks = (
        params.compile == "on" and params.recompute == "selective"
    )  # single operations, which compiled layers do not have
    require(
        not picks,
        "recompute",
        "auto, none or full with compile on",
        "selective",
        "Or set compile auto.",
    )
    if params.streaming:
        sft = params.training_stage == "sft"
        require(
            not sft,
            "streaming",
            "training_stage pretrain beside it",
            "sft",
            "Answers are read before training.",
        )
        require(params.packing != "off", "streaming", "packing auto or on beside it", "packing off")
        no_end = "A stream has no last document."
        require(
            params.num_train_epochs == 0,
            "num_train_epochs",
            "train_steps with streaming",
            f"{params.num_train_epochs:g}",
            no_end,
        )
        require(
            params.eval_strategy != "epoch",
            "eval_strategy",
            "no or steps with streaming",
            "epoch",
            no_end,
        )
    for name, value in (("eval_steps", params.eval_steps), ("save_steps", params.save_steps)):
        require(
            value < 1 or math.floor(value) == value,
            name,
            "whole steps, or a share below 1",
            f"{value:g}",
        )
    require(
        not {"num_train_epochs", "train_steps"} <= set(typed),
        "train_steps",
        "either epochs or steps",
        "both num_train_epochs and train_steps",
        "Give one of the two.",
    )
    _check_machines(params, require)
    found += sharding_problems(params)
    for name, value in params.as_json().items():
        if isinstance(value, str):
            require(
                len(value) <= MOST_TEXT,
                name,
                f"at most {MOST_TEXT} characters",
                f"{len(value)} characters",
            )
            require(
                redact(value) == value,
                name,
                "no key in a parameter",
                MARK,
                "Keys are read from the environment alone.",
            )
            require(
                is_writable(value),
                name,
                "text that UTF-8 can write, without a zero character",
                quoted(value),
            )
    return found


def is_writable(text: str) -> bool:
    """Tell a text that files and system calls take; a JSON or a file's name may hold one that they
    do not.
    """
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def _check_machines(params: Params, require: Callable[..., None]) -> None:
    machines, rank = params.num_machines, params.machine_rank
    require(
        rank < machines,
        "machine_rank",
        f"less than num_machines ({machines})",
        str(rank),
        "Machines are counted from 0.",
    )
    if machines > 1:
        port, address = params.main_process_port, params.main_process_ip
        require(
            port != "auto",
            "main_process_port",
            "a port that every machine names",
            "auto",
            "Choose one, such as 29500.",
        )
        # Others of 127.0.0.0/8 are let through: several parents on one machine, for a trial.
        local = address in ("127.0.0.1", "localhost", "::1")
        require(
            not local,
            "main_process_ip",
            "machine 0's address in the network",
            address,
            "127.0.0.1 is each machine itself.",
        )


def sharding_problems(params: Params) -> list[Problem]:
    """What cannot be cut up: 8-bit states come in blocks of a whole tensor, and nobody has proved
    that all ranks skip the same steps when float16 overflows.
    """
    found: list[Problem] = []
    if params.parallel in SHARDED:
        fix = "Or set parallel ddp."
        if params.optim != "adamw":
            found.append(
                Problem(
                    "parallel",
                    "optim adamw beside it",
                    f"{params.parallel} with {params.optim}",
                    fix,
                )
            )
        if params.dtype == "float16":
            found.append(
                Problem(
                    "parallel",
                    "bfloat16 or float32 beside it",
                    f"{params.parallel} with float16",
                    fix,
                )
            )
    return found


def _inapplicable(params: Params) -> list[str]:
    values = params.as_json()
    notes = [
        f"{name}: belongs to training_method {' or '.join(able)}; "
        f"it does nothing for {params.training_method}."
        for name in values
        if (able := methods_with(name)) and params.training_method not in able
        if values[name] != SCHEMA[name]["default"]
    ]
    notes += [
        f"{name}: does nothing without {switch}."
        for name, switch in NEEDS.items()
        if not values[switch] and values[name] != SCHEMA[name]["default"]
    ]
    if params.num_machines == 1 and params.main_process_port != "auto":
        notes.append(
            "main_process_port: does nothing on one machine, whose processes meet in a folder of their own."
        )
    if params.num_train_epochs > 0:
        notes.append(
            f"train_steps: ignored, because num_train_epochs is {params.num_train_epochs:g}."
        )
    return notes
