"""A decision and its reason."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Choice(NamedTuple, Generic[T]):
    """What runs, and why."""

    value: T
    why: str
