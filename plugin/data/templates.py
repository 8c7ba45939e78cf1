"""The three templates of a job, and how a row is rendered through them.

A Python repr never becomes training text: printing a list or an object is a fault of that row, not `str(value)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from ..job import JobError, Problem
from .sandbox import BUDGET, MAX_TEMPLATE, TEMPLATE_FAILED, Budget, Fault, OverLimit, RowError, compiled, sentence


@dataclass(frozen=True)
class Template:
    """One template that compiles, and the field it came from. Holds text only, so it can be sent to another process."""

    field: str
    source: str


@dataclass(frozen=True)
class Templates:
    """What the user turn (instruction, then input on a new line) and the assistant turn (output) are made of."""

    instruction: Template
    input: Template | None
    output: Template

    def columns(self) -> frozenset[str]:
        given = (self.instruction, self.input, self.output)
        return frozenset().union(*(columns_used(template) for template in given if template))


def compile_template(field: str, source: str) -> Template:
    """Check one template. Raises JobError (exit 2) naming `field`."""
    try:
        compiled(source)
    except Fault as fault:
        expected = f"a Jinja template of at most {MAX_TEMPLATE} characters"
        raise JobError(Problem(field, expected, str(fault), "Use {{ column }}, if, for and simple filters.")) from fault
    return Template(field, source)


def compile_templates(instruction_template: str, input_template: str, output_template: str) -> Templates | None:
    """The three templates of a job; blank ones are not given, and None means none is.

    Raises JobError (exit 2) with every bad template, and with a missing instruction or output when another is given.
    """
    sources = {
        "instruction_template": instruction_template,
        "input_template": input_template,
        "output_template": output_template,
    }
    if not any(source.strip() for source in sources.values()):
        return None
    problems: list[Problem] = []
    made: dict[str, Template] = {}
    for field, source in sources.items():
        if not source.strip():
            if field != "input_template":
                fix = "Give it, or leave all three templates empty to use the detected layout."
                problems.append(Problem(field, "a template, because another one is given", "nothing", fix))
            continue
        try:
            made[field] = compile_template(field, source)
        except JobError as error:
            problems.extend(error.problems)
    if problems:
        raise JobError(*problems)
    return Templates(made["instruction_template"], made.get("input_template"), made["output_template"])


def columns_used(template: Template) -> frozenset[str]:
    """The columns a template reads; it applies only to rows that have them all."""
    return compiled(template.source).columns


def render(template: Template, values: Mapping[str, object]) -> str:
    """One row's text, at most MAX_TEXT characters; an absent column counts as empty.

    Raises RowError when this row does not fit the template, JobError (exit 2) when the template itself goes too far.
    """
    source = compiled(template.source)
    budget = Budget()
    pieces: list[str] = []
    length = 0
    try:
        for piece in source.render.generate({**dict.fromkeys(source.columns), **values, BUDGET: budget}):
            length += len(piece)
            budget.hold(length)
            pieces.append(piece)
    except (SecurityError, OverLimit) as error:
        fix = "Simplify the template."
        raise JobError(Problem(template.field, "a template within the sandbox", sentence(error), fix)) from error
    except RowError:
        raise
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise RowError(TEMPLATE_FAILED, f"{template.field}: {error}") from error
    return "".join(pieces)
