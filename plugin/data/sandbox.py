"""A small and bounded part of Jinja.

Templates travel with shared forms and recipes, so they are somebody else's code. jinja2's sandbox keeps them from reaching
Python's insides; it does not keep them from running for ever or filling the memory. So the language is an allow-list (no `set`,
macros, multiplication or format widths, by which values grow), loops are counted, every string that may grow is measured before
it is built, and CPU time is the last resort.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache

import jinja2
from jinja2 import StrictUndefined, Undefined, meta, nodes, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE = 10_000  # characters of one template
MAX_TEXT = 1_000_000  # characters of one rendered or intermediate text
MAX_ITERATIONS = 10_000  # loop turns of one rendering, nested ones included
MAX_CPU_S = 1.0  # of one rendering; the counters above end every loop long before it

TEMPLATE_FAILED = "template failed on this row"
TEXT_TOO_LONG = "rendered text too long"

BUDGET = "_budget"  # the context variable that carries one rendering's counters; templates cannot name it


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NODES = _words(
    "Output TemplateData If For List Dict Tuple Pair Keyword Name Const Getattr Getitem Slice Call Filter Test "
    "CondExpr And Or Not Compare Operand Concat Add Sub Neg"
)
_METHODS = _words(
    "strip lstrip rstrip split rsplit splitlines upper lower title capitalize startswith endswith "
    "removeprefix removesuffix count index find get items keys values"
)
_TEXT_FILTERS = _words("trim upper lower capitalize title")
_VALUE_FILTERS = _words(
    "default d length count first last list map select reject selectattr rejectattr sort unique reverse min max "
    "int float abs items dictsort"
)
_TESTS = _words(
    "defined undefined none string number integer float boolean true false mapping sequence iterable in "
    "eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >="
)


class RowError(ValueError):
    """A row that cannot become training text. `reason` is a short phrase to count by, `str()` adds what happened."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class OverLimit(RuntimeError):
    """The template, not the row, asks for too much work."""


class Fault(Exception):
    """Why a template does not compile."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self._iterations = MAX_ITERATIONS
        # CPU time of this thread: a busy machine must not turn a good row into an error.
        self._deadline_s = time.thread_time() + MAX_CPU_S

    def iterate(self) -> None:
        self._iterations -= 1
        if self._iterations < 0:
            raise OverLimit(f"more than {MAX_ITERATIONS} loop turns")
        self.check_time()

    def hold(self, characters: int) -> None:
        """Refuse a text of this length before it is built."""
        if characters > MAX_TEXT:
            raise RowError(TEXT_TOO_LONG, f"more than {MAX_TEXT} characters")
        self.check_time()

    def check_time(self) -> None:
        if time.thread_time() > self._deadline_s:
            raise OverLimit(f"more than {MAX_CPU_S} s of CPU time")


def _text(value: object) -> str:
    """A printable value as text. Lists and objects are refused; an undefined value raises its own error in `str`."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("an infinite number")
    if isinstance(value, (str, int, float, Decimal, date, Undefined)):
        return str(value)
    raise TypeError(f"cannot print {type(value).__name__}; use join, tojson or a key of it")


def _of_text(function: Callable[..., str]) -> Callable[..., str]:
    return lambda value, *arguments: function(_text(value), *arguments)


@pass_context
def _counted(context: Context, items: Iterable[object]) -> Iterator[object]:
    """What every `for` loop really runs over."""
    budget: Budget = context[BUDGET]
    for item in items:
        budget.iterate()
        yield item


@pass_context
def _join(context: Context, items: Iterable[object], separator: str = "") -> str:
    texts = [_text(item) for item in items]
    context[BUDGET].hold(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


@pass_context
def _replace(context: Context, value: object, old: str, new: str) -> str:
    text = _text(value)
    context[BUDGET].hold(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


@pass_context
def _tojson(context: Context, value: object) -> str:
    """Plain JSON; jinja's own escapes `<` and `&` for HTML, which no training text wants."""
    pieces: list[str] = []
    length = 0
    for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        length += len(piece)
        context[BUDGET].hold(length)
        pieces.append(piece)
    return "".join(pieces)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_ITERATIONS:
        raise OverLimit(f"a range of more than {MAX_ITERATIONS} numbers")
    return numbers


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+"})

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            context[BUDGET].hold(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _environment() -> _Sandbox:
    environment = _Sandbox(autoescape=False, keep_trailing_newline=True, undefined=StrictUndefined, finalize=_text)
    environment.globals = {"range": _range}
    environment.tests = {name: TESTS[name] for name in _TESTS}
    environment.filters = {
        **{name: FILTERS[name] for name in _VALUE_FILTERS},
        **{name: _of_text(FILTERS[name]) for name in _TEXT_FILTERS},
        "string": _text,
        "join": _join,
        "replace": _replace,
        "tojson": _tojson,
        "_counted": _counted,
    }
    return environment


_ENVIRONMENT = _environment()


def _refusal(node: nodes.Node) -> str:
    """Why this part of a template is not allowed; empty when it is."""
    kind = type(node).__name__
    if kind not in _NODES:
        return f"'{kind.lower()}', which templates may not use"
    if isinstance(node, nodes.Name) and node.name.startswith("_"):
        return f"the private name {node.name!r}"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("__"):
        return f"the private attribute {node.attr!r}"
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and str(node.arg.value).startswith("__"):
        return f"the private attribute {node.arg.value!r}"
    if isinstance(node, nodes.For) and node.recursive:
        return "a recursive loop"
    if isinstance(node, nodes.Filter) and (node.name not in _ENVIRONMENT.filters or node.name.startswith("_")):
        return f"the filter {node.name!r}; known are {', '.join(sorted(_ENVIRONMENT.filters)[1:])}"
    if isinstance(node, nodes.Test) and node.name not in _TESTS:
        return f"the test {node.name!r}; known are {', '.join(_TESTS)}"
    if isinstance(node, nodes.Call):
        callee = node.node
        known = callee.attr in _METHODS if isinstance(callee, nodes.Getattr) else _is_range(callee)
        if not known or node.dyn_args or node.dyn_kwargs:
            return f"a call other than range() and the methods {', '.join(_METHODS)}"
    # Without `set`, a list of variables is the last way to double a value again and again.
    if isinstance(node, (nodes.List, nodes.Tuple)) and not _is_target(node):
        return "" if all(isinstance(item, nodes.Const) for item in node.items) else "a list of anything but constants"
    if isinstance(node, nodes.Pair) and not (isinstance(node.key, nodes.Const) and isinstance(node.value, nodes.Const)):
        return "an object of anything but constants"
    return ""


def _is_range(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "range"


def _is_target(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Tuple) and node.ctx == "store"  # `for key, value in ...`


class _Bounded(NodeTransformer):
    """Puts loops and `~` behind the filters that count."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        items = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(items, "join", [], [], None, None, lineno=node.lineno)


@dataclass(frozen=True)
class _Compiled:
    render: jinja2.Template
    columns: frozenset[str]


def sentence(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".")


@lru_cache(maxsize=64)
def compiled(source: str) -> _Compiled:
    """Compile once a process. Raises Fault."""
    if len(source) > MAX_TEMPLATE:
        raise Fault(f"{len(source)} characters")
    try:
        tree = _ENVIRONMENT.parse(source)
        for node in tree.find_all(nodes.Node):
            if refusal := _refusal(node):
                raise Fault(f"in line {node.lineno} {refusal}")
        columns = frozenset(meta.find_undeclared_variables(tree))
        tree = _Bounded().visit(tree).set_environment(_ENVIRONMENT)
        return _Compiled(_ENVIRONMENT.from_string(tree), columns)
    except jinja2.TemplateSyntaxError as error:
        raise Fault(f"in line {error.lineno}: {sentence(error)}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise Fault("one nested too deeply") from error
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise Fault(sentence(error)) from error
