"""Forms, parameter files and command lines."""

from __future__ import annotations

import json
from typing import Any

import yaml
from fuzz.values import numbers, texts, values
from hypothesis import strategies as st

from plugin.config.aliases import ALIASES
from plugin.config.params import SCHEMA
from plugin.config.wording import NICKNAMES, choices

NAMES = (*SCHEMA, *ALIASES)
SWITCHES = (
    "--json",
    "--download",
    "--help",
    "--version",
    "--",
    "-",
    "-h",
    "--config",
    "--task",
    "--plugin_dir",
    "--lr",
)


# Text that YAML reads as something other than `name: value`, or refuses.
JUNK = (
    "\n- a",
    "\nx: &a [*a]",
    "\na: &a [1, 1]\nb: &b [*a, *a]\nseed: [*b, *b]",
    "\nseed: " + "[" * 3000,
    "\n? [a]\n: b",
    "\n\t",
    "\n<<: {a: 1}",
    "\n[a]: 1",
    "\n1: 2",
    "\nnull: 1",
)


def names() -> st.SearchStrategy[str]:
    """Make names of parameters, nicknames, and undeclared names."""
    return (
        st.sampled_from(NAMES)
        | st.sampled_from((*NICKNAMES, "Batch-Size", "batch", "advanced", "trian"))
        | texts(2)
    )


def typed() -> st.SearchStrategy[str]:
    """Make words that a user may type into a field."""
    words = sorted({word for name in SCHEMA for word in choices(name)})
    odd = (
        "1_000",
        "0x10",
        "1e5",
        "inf",
        "-inf",
        "nan",
        "１２",
        " 4 ",
        "true",
        "no",
        "off",
        "null",
        "~",
        "9" * 400,
        "1.0",
        ".5",
        "0,1",
    )
    shaped = (
        "cart[geo_p:0.3]",
        "cart[geo_p:0]",
        "adaptor",
        "../up",
        "a|b",
        "x+y",
        "[",
        "x[train:0]",
        "x[train:9999999999999999999]",
    )
    return (
        st.sampled_from(words)
        | st.sampled_from(odd)
        | st.sampled_from(shaped)
        | numbers().map(str)
        | texts()
    )


def fitting(name: str) -> st.SearchStrategy[Any]:
    """Make a value that the parameter probably accepts."""
    kinds = {kind.get("type") for kind in SCHEMA[name].get("anyOf", [SCHEMA[name]])}
    if words := choices(name):
        return st.sampled_from(words)
    if "boolean" in kinds:
        return st.sampled_from((True, False, "true", "false", "on", "0"))
    if "integer" in kinds:
        return st.sampled_from((0, 1, 2, 8, 10, 64, "1", "4", "200"))
    if "number" in kinds:
        return st.sampled_from((0, 0.1, 0.5, 1, 3, "0.25", "1e-4", "2"))
    return st.just(SCHEMA[name]["default"])


@st.composite
def forms(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a form's values: most are valid, some are not."""
    given = {
        name: draw(fitting(name))
        for name in draw(st.lists(st.sampled_from(tuple(SCHEMA)), max_size=8))
    }
    given |= draw(st.dictionaries(names(), st.one_of(typed(), values(4)), max_size=2))
    if draw(st.booleans()):
        lines = st.lists(st.tuples(names(), typed()).map(": ".join) | texts(), max_size=3)
        given["advanced"] = "\n".join(draw(lines)) if draw(st.booleans()) else draw(values(3))
    return given


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw the words after a verb; some of them belong there."""
    words: list[str] = []
    for name in draw(st.lists(st.sampled_from(tuple(SCHEMA)), max_size=5)):
        value = str(draw(fitting(name)))
        words += [f"--{name}={value}"] if draw(st.booleans()) else [f"--{name}", value]
    for _ in range(draw(st.integers(0, 2))):
        odd = draw(
            st.one_of(
                st.sampled_from(SWITCHES),
                typed(),
                names().map("--{}".format),
                names().map("-{}=1".format),
            )
        )
        words.insert(draw(st.integers(0, len(words))), odd)
    return [as_typed(word) for word in words]


def as_typed(word: str) -> str:
    """Convert a word to one that a shell can pass: no zero byte, not necessarily UTF-8."""
    halves = {0: None, **dict.fromkeys(range(0xD800, 0xE000), 0xDCFF)}
    return word.translate(halves)


@st.composite
def parameter_files(draw: st.DrawFn) -> bytes:
    """Draw a file for --config: YAML, JSON, a run.json, or something else."""
    content = draw(
        st.one_of(
            forms(),
            st.fixed_dictionaries({"params": forms() | values(3), "result": values(3)}),
            values(4),
        )
    )
    if draw(st.booleans()):
        return json.dumps(content, ensure_ascii=draw(st.booleans())).encode(
            "utf-8", "surrogatepass"
        )
    try:
        written = yaml.safe_dump(content, allow_unicode=True)
    except yaml.YAMLError:
        written = repr(content)
    junk = draw(st.sampled_from(("", "", *JUNK)))
    return (written + junk).encode("utf-8", "replace")
