"""The three templates of a form, and the texts that they make of a row.

A Python repr never becomes training text: to print a list or an object is an error of that row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pickle import PicklingError

from jinja2.exceptions import SecurityError

from ...base.errors import JobError, Problem, data_error, first_line
from ..seen import RowError
from .form_language import (
    FUNCTIONS,
    MAX_TEMPLATE,
    MAX_TEXT,
    TEMPLATE_FAILED,
    TEXT_TOO_LONG,
    Fault,
    compiled,
)
from .renderer import LIMITS, Failed, OverLimit, RenderJob
from .renderer import render as render_in_child


@dataclass(frozen=True)
class FormTemplate:
    """A template that compiles, with the field it came from.

    It holds text only, so it can be sent to another process.
    """

    field: str
    source: str


@dataclass(frozen=True)
class Templates:
    """Templates of the user turn (instruction, input on a new line) and of the answer (output)."""

    instruction: FormTemplate
    input: FormTemplate | None
    output: FormTemplate

    def columns(self) -> frozenset[str]:
        """Return every column that they read."""
        given = (self.instruction, self.input, self.output)
        return frozenset().union(*(columns_used(template) for template in given if template))


def compile_template(field: str, source: str) -> FormTemplate:
    """Check one template. Raises JobError (exit 2) naming `field`."""
    try:
        compiled(source)
    except Fault as fault:
        expected = f"a Jinja template of at most {MAX_TEMPLATE} characters"
        fix = "Use {{ column }}, if, for and simple filters."
        raise JobError(Problem(field, expected, str(fault), fix)) from fault
    return FormTemplate(field, source)


def compile_templates(
    instruction_template: str, input_template: str, output_template: str
) -> Templates | None:
    """Check the three templates of a job; a blank template is absent. Returns None without any.

    Raises JobError (exit 2) with every bad template, and with an instruction or output that is
    missing although another template is given.
    """
    sources = {
        "instruction_template": instruction_template,
        "input_template": input_template,
        "output_template": output_template,
    }
    if not any(source.strip() for source in sources.values()):
        return None
    problems: list[Problem] = []
    made: dict[str, FormTemplate] = {}
    for field, source in sources.items():
        if not source.strip():
            if field != "input_template":
                fix = "Give it, or leave all three templates empty to use the detected format."
                expected = "a template, because another one is given"
                problems.append(Problem(field, expected, "nothing", fix))
            continue
        try:
            made[field] = compile_template(field, source)
        except JobError as error:
            problems.extend(error.problems)
    if problems:
        raise JobError(*problems)
    return Templates(
        made["instruction_template"], made.get("input_template"), made["output_template"]
    )


def columns_used(template: FormTemplate) -> frozenset[str]:
    """Return the columns that a template reads; it applies only to rows that have all of them."""
    return compiled(template.source).columns


def render(template: FormTemplate, values: Mapping[str, object]) -> str:
    """Render a row's text, at most MAX_TEXT characters; an absent column counts as empty.

    Raises RowError if this row does not fit the template, and JobError (exit 2) if the template
    exceeds its limits.
    """
    ((text,),) = _rendered((template,), [values])
    if isinstance(text, RowError):
        raise text
    return text


def render_rows(
    templates: Templates, rows: Sequence[Mapping[str, object]]
) -> list[tuple[str, str, str] | RowError]:
    """Render instruction, input ("" without its template) and output of every row.

    Returns a RowError for a row that does not fit. Raises JobError (exit 2) as `render` does.
    """
    every = (templates.instruction, templates.input, templates.output)
    given = [template for template in every if template]
    found: list[tuple[str, str, str] | RowError] = []
    for texts in _rendered(given, rows):
        wrong = next((text for text in texts if isinstance(text, RowError)), None)
        first, *between, last = (str(text) for text in texts)
        found.append(wrong or (first, between[0] if between else "", last))
    return found


def _rendered(
    templates: Sequence[FormTemplate], rows: Sequence[Mapping[str, object]]
) -> list[tuple[str | RowError, ...]]:
    """Render every template for every row."""
    return list(zip(*(_column(template, rows) for template in templates), strict=True))


def _column(template: FormTemplate, rows: Sequence[Mapping[str, object]]) -> list[str | RowError]:
    """Render one template for every row."""
    columns = columns_used(template)
    jobs = [RenderJob(_values(columns, row), MAX_TEXT) for row in rows]
    try:
        texts = render_in_child("form", template.source, jobs)
    except OverLimit as error:
        raise _over_limit(template, str(error)) from error
    except (PicklingError, TypeError, AttributeError) as error:  # a class private to its library
        raise data_error("dataset_name", "rows of plain values", first_line(error)) from error
    return [_text_or_error(template, text) for text in texts]


def _values(columns: frozenset[str], row: Mapping[str, object]) -> dict[str, object]:
    """Select the values that a template may read; a column wins over a function of its name."""
    return {
        **dict.fromkeys(columns),
        **{name: row[name] for name in (*columns, *FUNCTIONS) if name in row},
    }


def _text_or_error(template: FormTemplate, text: str | Failed) -> str | RowError:
    if isinstance(text, str):
        return text
    if text.too_long:
        return RowError(TEXT_TOO_LONG, f"more than {MAX_TEXT} characters")
    if text.kind == SecurityError.__name__:
        raise _over_limit(template, first_line(text.words or text.kind))
    return RowError(TEMPLATE_FAILED, f"{template.field}: {text.words}")


def _over_limit(template: FormTemplate, got: str) -> JobError:
    expected = f"a template within the sandbox, {LIMITS} a row"
    return JobError(Problem(template.field, expected, got, "Simplify the template."))
