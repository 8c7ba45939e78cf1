"""The three templates of a job, and how a row is rendered through them.

A Python repr never becomes training text: printing a list or an object is a fault of that row, not
`str(value)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pickle import PicklingError

from jinja2.exceptions import SecurityError

from ...base.errors import JobError, Problem, data_error, first_line
from .renderer import LIMITS, Failed, Job, OverLimit
from .renderer import render as render_apart
from .sandbox import (
    FUNCTIONS,
    MAX_TEMPLATE,
    MAX_TEXT,
    TEMPLATE_FAILED,
    TEXT_TOO_LONG,
    Fault,
    RowError,
    compiled,
)


@dataclass(frozen=True)
class Template:
    """One template that compiles, and the field it came from.

    Holds text only, so it can be sent to another process.
    """

    field: str
    source: str


@dataclass(frozen=True)
class Templates:
    """What the user turn (instruction, then input on a new line) and the assistant turn (output)
    are made of.
    """

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
        raise JobError(
            Problem(field, expected, str(fault), "Use {{ column }}, if, for and simple filters.")
        ) from fault
    return Template(field, source)


def compile_templates(
    instruction_template: str, input_template: str, output_template: str
) -> Templates | None:
    """The three templates of a job; blank ones are not given, and None means none is.

    Raises JobError (exit 2) with every bad template, and with a missing instruction or output when
    another is given.
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
                problems.append(
                    Problem(field, "a template, because another one is given", "nothing", fix)
                )
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


def columns_used(template: Template) -> frozenset[str]:
    """The columns a template reads; it applies only to rows that have them all."""
    return compiled(template.source).columns


def render(template: Template, values: Mapping[str, object]) -> str:
    """Render one row's text, at most MAX_TEXT characters; an absent column counts as empty.

    Raise RowError when this row does not fit the template, JobError (exit 2) when the template
    itself goes too far.
    """
    ((text,),) = _rendered((template,), [values])
    if isinstance(text, RowError):
        raise text
    return text


def render_rows(
    templates: Templates, rows: Sequence[Mapping[str, object]]
) -> list[tuple[str, str, str] | RowError]:
    """Render instruction, input ("" without its template) and output of every row.

    A RowError says why one does not fit. Raise JobError (exit 2) as `render`.
    """
    given = [one for one in (templates.instruction, templates.input, templates.output) if one]
    found: list[tuple[str, str, str] | RowError] = []
    for texts in _rendered(given, rows):
        wrong = next((text for text in texts if isinstance(text, RowError)), None)
        first, *between, last = (str(text) for text in texts)
        found.append(wrong or (first, between[0] if between else "", last))
    return found


def _rendered(
    templates: Sequence[Template], rows: Sequence[Mapping[str, object]]
) -> list[tuple[str | RowError, ...]]:
    """Render every template for every row."""
    return list(zip(*(_column(template, rows) for template in templates), strict=True))


def _column(template: Template, rows: Sequence[Mapping[str, object]]) -> list[str | RowError]:
    """Render one template for every row."""
    columns = columns_used(template)
    try:
        texts = render_apart(
            "form", template.source, [Job(_values(columns, row), MAX_TEXT) for row in rows]
        )
    except OverLimit as error:
        raise _goes_too_far(template, str(error)) from error
    except (
        PicklingError,
        TypeError,
        AttributeError,
    ) as error:  # a value of a class that only its library knows
        raise data_error("dataset_name", "rows of plain values", first_line(error)) from error
    return [_text_or_error(template, text) for text in texts]


def _values(columns: frozenset[str], row: Mapping[str, object]) -> dict[str, object]:
    """Take the values that a template may read: a column wins over a function of its name."""
    return {
        **dict.fromkeys(columns),
        **{name: row[name] for name in (*columns, *FUNCTIONS) if name in row},
    }


def _text_or_error(template: Template, text: str | Failed) -> str | RowError:
    if isinstance(text, str):
        return text
    if text.too_long:
        return RowError(TEXT_TOO_LONG, f"more than {MAX_TEXT} characters")
    if text.kind == SecurityError.__name__:
        raise _goes_too_far(template, first_line(text.words or text.kind))
    return RowError(TEMPLATE_FAILED, f"{template.field}: {text.words}")


def _goes_too_far(template: Template, got: str) -> JobError:
    expected = f"a template within the sandbox, {LIMITS} a row"
    return JobError(Problem(template.field, expected, got, "Simplify the template."))
