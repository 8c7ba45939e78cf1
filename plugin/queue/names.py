"""Names of job files: an order number, a hyphen, and the name that a person gave.

`00010-dream` runs before `00020-bert`; names without a number run last, by their letters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

STRIDE = 10  # between the numbers of two jobs, so that a third may get in between
_NUMBERED = re.compile(r"(\d{1,9})-(.+)", re.DOTALL)
_LONGEST = 64


def number_of(name: str) -> float:
    """Return the order number of a name; infinity without one."""
    found = _NUMBERED.fullmatch(name)
    return int(found[1]) if found else math.inf


def bare(name: str) -> str:
    """Return a name without its order number."""
    found = _NUMBERED.fullmatch(name)
    return found[2] if found else name


def order_of(name: str) -> tuple[float, str]:
    """Return the key by which names are sorted."""
    return number_of(name), name


def numbered(number: float, name: str) -> str:
    return f"{number:05.0f}-{bare(name)}"


def clean(name: str) -> str:
    """Return a name of letters, digits, `.`, `_` and `-`, for files and folders of ours."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", bare(name))[:_LONGEST].strip("-.") or "job"
    number = number_of(name)
    return short if math.isinf(number) else numbered(number, short)


def unused(name: str, taken: Collection[str]) -> str:
    """Return a name, with a count behind it where it is taken."""
    found, count = name, 2
    while found in taken:
        found, count = f"{name}-{count}", count + 1
    return found


def next_number(names: Collection[str]) -> int:
    """Return the number that comes after those of `names`."""
    numbers = [number for name in names if not math.isinf(number := number_of(name))]
    return (int(max(numbers, default=0)) // STRIDE + 1) * STRIDE


def renamings(
    waiting: Sequence[str], name: str, place: int, others: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return the renamings, in order, that bring a waiting job to a place; 1 is next.

    `waiting`: all names in their order. `others`: those of jobs that do not wait, whose numbers are
    taken. One renaming is enough while there is a free number in between.
    Otherwise names without a number get one, from the first to the last; where that leaves no room
    either, all get new ones, from the last to the first, above every old one. The others keep their
    order at each moment between two renamings.
    """
    rest = [one for one in waiting if one != name]
    place = max(0, min(place - 1, len(rest)))
    wanted = [*rest[:place], name, *rest[place:]]
    if wanted == list(waiting):
        return []
    before = number_of(rest[place - 1]) if place else 0
    after = number_of(rest[place]) if place < len(rest) else math.inf
    if not math.isinf(before):
        number = _between(before, after, {number_of(one) for one in others})
        if number is not None:
            return [(name, numbered(number, name))]
    first = next_number([*waiting, *others])
    if loose := [one for one in waiting if math.isinf(number_of(one))]:
        new = {one: numbered(first + STRIDE * at, one) for at, one in enumerate(loose)}
        named = [new.get(one, one) for one in waiting]
        return [*new.items(), *renamings(named, new.get(name, name), place + 1, others)]
    return [(one, numbered(first + STRIDE * at, one)) for at, one in enumerate(wanted)][::-1]


def _between(before: float, after: float, taken: Collection[float]) -> float | None:
    """Return a number between two that nobody has, near their middle; None without one."""
    middle = before + STRIDE if math.isinf(after) else (before + after) // 2
    reach = STRIDE if math.isinf(after) else int(after - before)
    near = (middle + sign * away for away in range(reach) for sign in (1, -1))
    return next((one for one in near if before < one < after and one not in taken), None)
