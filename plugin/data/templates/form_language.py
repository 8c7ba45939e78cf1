"""Language of form templates: a small part of Jinja.

Templates travel with shared forms and recipes, so they are code of strangers. jinja2's sandbox
keeps them away from Python's internals, and the language is an allow-list, which reports a mistake
before any row is read. render_child.py enforces the limits of time and memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache

import jinja2
from jinja2 import StrictUndefined, Undefined, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer

from ...base.errors import first_line

MAX_TEMPLATE = 10_000  # characters of a template
MAX_TEXT = 1_000_000  # characters of a rendered text

TEMPLATE_FAILED = "template failed on this row"
TEXT_TOO_LONG = "rendered text too long"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NODES = _words(
    "Output TemplateData If For List Dict Tuple Pair Keyword Name Const Getattr Getitem Slice Call "
    "Filter Test CondExpr And Or Not Compare Operand Concat Add Sub Neg"
)
_METHODS = _words(
    "strip lstrip rstrip split rsplit splitlines upper lower title capitalize startswith endswith "
    "removeprefix removesuffix count index find get items keys values"
)
_TEXT_FILTERS = _words("trim upper lower capitalize title")
_VALUE_FILTERS = _words(
    "default d length count first last list map select reject selectattr rejectattr sort unique "
    "reverse min max int float abs items dictsort"
)
_TESTS = _words(
    "defined undefined none string number integer float boolean true false mapping sequence "
    "iterable in eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >="
)


class Fault(Exception):
    """Reason why a template does not compile."""


def _text(value: object) -> str:
    """Convert a printable value to text. Raises ValueError or TypeError.

    Lists and objects are refused; an undefined value raises its own error in `str`.
    """
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("an infinite number")
    if isinstance(value, (str, int, float, Decimal, date, Undefined)):
        return str(value)
    raise TypeError(f"cannot print {type(value).__name__}; use join, tojson or a key of it")


def _of_text(function: Callable[..., str]) -> Callable[..., str]:
    return lambda value, *arguments: function(_text(value), *arguments)


def _join(items: Iterable[object], separator: str = "") -> str:
    return separator.join([_text(item) for item in items])


def _replace(value: object, old: str, new: str) -> str:
    return _text(value).replace(old, new)


def _tojson(value: object) -> str:
    """Write plain JSON. jinja's own filter escapes `<` and `&` for HTML, which no text wants."""
    return json.dumps(value, ensure_ascii=False)


@pass_context
def _printed(context: Context, value: object) -> str:
    return _text(value)


def _range(*bounds: int) -> range:
    try:
        return safe_range(*bounds)
    except OverflowError as error:
        raise SecurityError(f"a range of more than {MAX_RANGE} numbers") from error


FUNCTIONS = {"range": _range}


def _environment() -> ImmutableSandboxedEnvironment:
    # A template is compiled in the parent, which has no limits. jinja2 must therefore compute
    # nothing at compile time: no optimizer, and a `finalize` that needs the context.
    environment = ImmutableSandboxedEnvironment(
        autoescape=False,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_printed,
        optimized=False,
    )
    environment.globals = dict(FUNCTIONS)
    environment.tests = {name: TESTS[name] for name in _TESTS}
    environment.filters = {
        **{name: FILTERS[name] for name in _VALUE_FILTERS},
        **{name: _of_text(FILTERS[name]) for name in _TEXT_FILTERS},
        "string": _text,
        "join": _join,
        "replace": _replace,
        "tojson": _tojson,
    }
    return environment


_ENVIRONMENT = _environment()


def _refusal(node: nodes.Node) -> str:
    """Say why a part of a template is not allowed; return an empty text if it is."""
    kind = type(node).__name__
    if kind not in _NODES:
        return f"'{kind.lower()}', which templates may not use"
    if isinstance(node, nodes.Name) and node.name.startswith("_"):
        return f"the private name {node.name!r}"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("__"):
        return f"the private attribute {node.attr!r}"
    if (
        isinstance(node, nodes.Getitem)
        and isinstance(node.arg, nodes.Const)
        and str(node.arg.value).startswith("__")
    ):
        return f"the private attribute {node.arg.value!r}"
    if isinstance(node, nodes.For) and node.recursive:
        return "a recursive loop"
    if isinstance(node, nodes.Filter) and node.name not in _ENVIRONMENT.filters:
        return f"the filter {node.name!r}; known are {', '.join(sorted(_ENVIRONMENT.filters))}"
    if isinstance(node, nodes.Test) and node.name not in _TESTS:
        return f"the test {node.name!r}; known are {', '.join(_TESTS)}"
    if isinstance(node, nodes.Call):
        callee = node.node
        known = callee.attr in _METHODS if isinstance(callee, nodes.Getattr) else _is_range(callee)
        if not known or node.dyn_args or node.dyn_kwargs:
            return f"a call other than range() and the methods {', '.join(_METHODS)}"
    # There is no `set` either: these are tables of words, such as {{ ['no', 'yes'][label] }}.
    if isinstance(node, (nodes.List, nodes.Tuple)) and not _is_target(node):
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return "" if constant else "a list of anything but constants"
    if isinstance(node, nodes.Pair):
        constant = isinstance(node.key, nodes.Const) and isinstance(node.value, nodes.Const)
        return "" if constant else "an object of anything but constants"
    return ""


def _is_range(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "range"


def _is_target(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Tuple) and node.ctx == "store"  # `for key, value in ...`


class _ConcatAsJoin(NodeTransformer):
    """Replaces `~` by join: jinja2's own `~` would print a list as Python."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        items = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(items, "join", [], [], None, None, lineno=node.lineno)


@dataclass(frozen=True)
class _Compiled:
    """A template and the columns that it reads."""

    render: jinja2.Template
    columns: frozenset[str]


@lru_cache(maxsize=64)
def compiled(source: str) -> _Compiled:
    """Compile a template, once in a process. Raises Fault."""
    if len(source) > MAX_TEMPLATE:
        raise Fault(f"{len(source)} characters")
    try:
        tree = _ENVIRONMENT.parse(source)
        for node in tree.find_all(nodes.Node):
            if refusal := _refusal(node):
                raise Fault(f"in line {node.lineno} {refusal}")
        columns = frozenset(meta.find_undeclared_variables(tree))
        tree = _ConcatAsJoin().visit(tree).set_environment(_ENVIRONMENT)
        return _Compiled(_ENVIRONMENT.from_string(tree), columns)
    except jinja2.TemplateSyntaxError as error:
        raise Fault(f"in line {error.lineno}: {first_line(error)}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise Fault("a template nested too deeply") from error
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise Fault(first_line(error)) from error
