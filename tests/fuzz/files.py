"""Data files: their names, rows, encodings and bytes, intact or broken."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz.values import texts, values
from hypothesis import strategies as st

Row = dict[str, Any]
PAIRS = (
    *(
        ("prompt", "response"),
        ("question", "answer"),
        ("instruction", "output"),
        ("prompt", "completion"),
    ),
    *(("prompt", "chosen"), ("input", "output"), ("human", "assistant")),
)
CHATS = ("messages", "conversations", "dialog", "chat")
ROLES = ("user", "assistant", "system", "human", "gpt", "tool", "", None)
MORE = ("system", "history", "input", "id", "text", "score", "")
MARKS = ("weight", "train", "masked", "loss", "reasoning_content", "tool_calls", "name")


def messages() -> st.SearchStrategy[Any]:
    """Make a message that can usually be read."""
    parts = st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(("text", "thinking", "image")), "text": texts()}
        ),
        max_size=3,
    )
    content = st.one_of(texts(), texts(), parts, values(4))
    marks = st.dictionaries(
        st.sampled_from(MARKS),
        st.sampled_from((0, 1, True, False, "0", None, 0.5, [])) | values(2),
        max_size=2,
    )
    named = st.fixed_dictionaries({"role": st.sampled_from(ROLES[:5]), "content": content})
    other = st.fixed_dictionaries({"from": st.sampled_from(ROLES) | values(2), "value": content})
    rounds = st.sampled_from(PAIRS).flatmap(
        lambda pair: st.fixed_dictionaries({pair[0]: content, pair[1]: content})
    )
    return st.one_of(named, st.builds(lambda a, b: a | b, named, marks), other, rounds, values(3))


def dialogues() -> st.SearchStrategy[Any]:
    """Make a chat: a valid chat, a list of messages of any kind, or the JSON text of either."""
    said = st.lists(st.tuples(texts(), texts()), min_size=1, max_size=3)
    sound = said.map(
        lambda rounds: [
            {"role": role, "content": text}
            for pair in rounds
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    )
    chats = st.one_of(sound, st.lists(messages(), max_size=4))
    return st.one_of(chats, chats, chats.map(json.dumps), values(4))


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Draw rows of one format, some of them with other columns or values."""
    kind = draw(st.sampled_from(("pair", "chat", "text", "any")))
    more = draw(st.dictionaries(st.sampled_from(MORE) | texts(2), values(3), max_size=2))
    sides = st.one_of(texts(), texts(), dialogues(), values(3))
    if kind == "pair":
        made = st.fixed_dictionaries(dict.fromkeys(draw(st.sampled_from(PAIRS)), sides))
    elif kind == "chat":
        made = st.fixed_dictionaries({draw(st.sampled_from(CHATS)): dialogues()})
    elif kind == "text":
        made = st.fixed_dictionaries({"text": texts() | values(2)})
    else:
        made = st.dictionaries(
            st.sampled_from(("prompt", "response", "text", "messages")) | texts(2),
            values(4),
            max_size=4,
        )
    one = (
        made
        | made
        | st.builds(
            lambda a, b: more | a | b,
            made,
            st.dictionaries(st.sampled_from(MORE), values(3), max_size=1),
        )
    )
    return draw(st.lists(one, max_size=6))


def json_lines(draw: st.DrawFn, given: Sequence[Row]) -> str:
    end = draw(st.sampled_from(("\n", "\r\n", "\n\n", "\r", "\n \n")))
    return end.join(json.dumps(row, ensure_ascii=draw(st.booleans())) for row in given)


def whole_json(draw: st.DrawFn, given: Sequence[Row]) -> str:
    every = list(given)
    value = draw(
        st.sampled_from(
            (every, {"data": every}, {"train": every, "meta": []}, every[:1], *every[:1], 1)
        )
    )
    return json.dumps(
        value, indent=draw(st.sampled_from((None, 1))), ensure_ascii=draw(st.booleans())
    )


def table(draw: st.DrawFn, given: Sequence[Row]) -> str:
    """Write the rows as a .csv of a drawn dialect."""
    columns = list(dict.fromkeys(name for row in given for name in row))
    written = io.StringIO()
    writer = csv.writer(
        written,
        delimiter=draw(st.sampled_from((",", ",", ";", "\t"))),
        lineterminator=draw(st.sampled_from(("\n", "\r\n", "\r"))),
        quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))),
    )
    writer.writerow(columns)
    for row in given:
        cells = [row.get(name) for name in columns]
        writer.writerow(
            [json.dumps(cell) if isinstance(cell, dict | list) else cell for cell in cells]
        )
    return written.getvalue()


@st.composite
def arrays(draw: st.DrawFn, size: int) -> pa.Array:
    """Draw a column of a type that tables have and JSON does not."""
    kind = draw(
        st.sampled_from(
            (
                *(
                    pa.binary(),
                    pa.large_string(),
                    pa.timestamp("ns"),
                    pa.timestamp("us", "Europe/Zurich"),
                    pa.date32(),
                ),
                *(
                    pa.duration("ns"),
                    pa.decimal128(38, 5),
                    pa.float16(),
                    pa.uint64(),
                    pa.null(),
                    pa.time64("ns"),
                ),
            )
        )
    )
    drawn = [draw(st.none() | st.integers(0, 2**40)) for _ in range(size)]
    try:
        if kind in (pa.binary(), pa.large_string()):
            return pa.array(
                [
                    None if one is None else str(one).encode() + b"\xff" * (kind == pa.binary())
                    for one in drawn
                ],
                kind,
            )
        return pa.array(drawn, pa.int64()).cast(kind, safe=False)
    except (pa.ArrowException, OverflowError):
        return pa.nulls(size, kind)


@st.composite
def columns(draw: st.DrawFn, given: Sequence[Row], suffix: str) -> bytes:
    """Write the rows as .parquet or .arrow; a column that no table can hold becomes JSON text."""
    names = list(dict.fromkeys(name for row in given for name in row))
    made: list[pa.Array] = []
    for name in names:
        cells = [row.get(name) for row in given]
        try:
            made.append(pa.array(cells))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
            made.append(pa.array([json.dumps(cell) for cell in cells]))
    if draw(st.booleans()):
        names.append(draw(st.sampled_from(("prompt", "text", "messages", "when"))))
        made.append(draw(arrays(len(given))))
    names = [name.encode(errors="replace").decode() for name in names]
    written = io.BytesIO()
    content = pa.Table.from_arrays(made, names=names)
    try:
        if suffix == ".parquet":
            pq.write_table(content, written)
        else:
            make = draw(st.sampled_from((pa.ipc.new_file, pa.ipc.new_stream)))
            with make(written, content.schema) as writer:
                writer.write_table(content)
    except pa.ArrowException:
        return b"PAR1"
    return written.getvalue()


@st.composite
def contents(draw: st.DrawFn, suffix: str) -> bytes:
    """Draw the bytes of a file of this suffix: written by some program, then perhaps broken."""
    given = draw(rows())
    if suffix in (".parquet", ".arrow"):
        content = draw(columns(given, suffix))
    else:
        write = {
            ".jsonl": json_lines,
            ".json": draw(st.sampled_from((whole_json, json_lines))),
            ".csv": table,
        }.get(suffix)
        text = (
            write(draw, given) if write else draw(st.lists(texts(12), max_size=4).map("\n\n".join))
        )
        encoding = draw(
            st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"))
        )
        errors = (
            "replace"
            if encoding in ("latin-1", "cp1252")
            else draw(st.sampled_from(("surrogatepass", "replace")))
        )
        content = text.encode(encoding, errors)
    return draw(broken(content))


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw the same bytes, cut bytes, bytes with others inserted, or other bytes."""
    how = draw(st.sampled_from(("whole", "whole", "whole", "whole", "cut", "filled", "other")))
    place = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:place]
    if how == "filled":
        return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
    return draw(st.binary(max_size=40)) if how == "other" else content


SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt")
STEMS = (
    "train",
    "data",
    "test",
    "a b",
    "é",
    "x+y",
    "a|b",
    "val",
    "a\nb",
    "a[1]",
    ".hidden",
    "-",
    "~a",
    "\udcff",
    "state",
)


@st.composite
def folders(draw: st.DrawFn) -> Mapping[str, bytes]:
    """Draw one to three files by name."""
    found: dict[str, bytes] = {}
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        suffix = draw(st.sampled_from(SUFFIXES))
        name = draw(st.sampled_from(("train", "train", *STEMS))) + draw(
            st.sampled_from((suffix, suffix, suffix.upper()))
        )
        found[name] = draw(contents(suffix))
    return found
