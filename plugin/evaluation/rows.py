"""Rows of a probe: two columns of a data set, those to fit on and those held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..base.errors import data_error, one_line
from ..data.sources import Row, has_eval_split, read_rows

Kind = Literal["text", "label"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the data, and the option that names it."""

    option: str
    name: str
    kind: Kind = "text"


@dataclass(frozen=True, kw_only=True)
class ProbePairs:
    """Pairs of values: a text with its label, or a query with its document."""

    train: list[tuple[str, str]]
    held_out: list[tuple[str, str]]
    own_split: bool  # the data set's eval split is what is held out


def columns_of(spec: str) -> tuple[str, ...]:
    """Return the columns of the first row. Raises JobError (exit 2 or 3)."""
    for row in read_rows(spec, "train"):
        return tuple(row.values)
    raise data_error("dataset_name", "rows", "none")


def read_pairs(
    spec: str, columns: tuple[Column, Column], *, key: int, share: float, seed: int
) -> ProbePairs:
    """Read two columns of a data set.

    Its own eval split is held out, otherwise a seeded `share` of the distinct values of column
    `key`, so that no text lies on both sides. Raises JobError (exit 2 or 3).
    """
    train = list(_values(read_rows(spec, "train"), columns))
    if own := has_eval_split(spec):
        held_out = list(_values(read_rows(spec, "eval"), columns))
    else:
        chosen = _chosen([pair[key] for pair in train], share, seed)
        held_out = [pair for pair in train if pair[key] in chosen]
        train = [pair for pair in train if pair[key] not in chosen]
    if not (train and held_out):
        got = f"{len(train)} to fit on, {len(held_out)} held out"
        raise data_error("dataset_name", "rows on both sides", got)
    return ProbePairs(train=train, held_out=held_out, own_split=own)


def _chosen(values: Sequence[str], share: float, seed: int) -> set[str]:
    """Choose a share of the distinct values, by seeded hashes: in no order of the rows."""
    salt = seed.to_bytes(8, "big")
    ordered = sorted(
        set(values),
        key=lambda text: hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest(),
    )
    return set(ordered[: math.ceil(share * len(ordered) - 1e-9)])


def _values(rows: Iterator[Row], columns: tuple[Column, Column]) -> Iterator[tuple[str, str]]:
    first, second = columns
    for row in rows:
        yield _value(row, first), _value(row, second)


def _value(row: Row, column: Column) -> str:
    """Return a value as text. Raises JobError (exit 3) naming the option of the column."""
    if column.name not in row.values:
        columns = one_line(", ".join(map(str, row.values)))[:200]
        raise data_error(column.option, f"a column {column.name!r}", f"{row.id}: {columns}")
    value = row.values[column.name]
    if isinstance(value, str) and value.strip():
        return value
    if column.kind == "label" and isinstance(value, int):  # a bool is one
        return str(value)
    wanted = "a text" if column.kind == "text" else "a text or a whole number"
    got = f"{row.id}: {value!r}"[:120]
    raise data_error(column.option, f"{wanted} in column {column.name!r}", got)
