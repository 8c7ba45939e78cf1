"""The grammar of `dataset_name`: files, folders and hub ids, joined and limited."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import Code, JobError, Problem
from .files.columns import FIELD
from .files.compressed import data_suffix
from .files.folder import COMPRESSED, Split, path_problem
from .files.readers import READERS
from .stored.manifest import is_prepared

_LIMITS: dict[str, Split] = {
    "train": "train",
    "eval": "eval",
    "valid": "eval",
    "validation": "eval",
    "test": "eval",
}
MAX_SEPARATORS = 1024
MAX_PARTS = 128  # each stretch of text between separators costs a look at the disk
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Part:
    """One part of a mixture: a file or folder (`path`), or a hub id (`path` is None).

    A limit of None is no limit.
    """

    name: str
    path: Path | None
    config: str | None = None
    train_limit: int | None = None
    eval_limit: int | None = None
    weight: float = 1.0  # how often a pass reads each document

    def limit(self, split: Split) -> int | None:
        """Return the number of rows to read of a split; None for all."""
        return self.train_limit if split == "train" else self.eval_limit


def parse_mixture(spec: str, *, weights: bool = False) -> tuple[Part, ...]:
    """Parse `NAME[train:5_000,test:100,name:cfg] | NAME + NAME`; `weight:2` if there are weights.

    Both separators concatenate, in the order given. A stretch of the text that exists as a path is
    that path, even if it holds `+`, `|` or brackets: with a file `a+b.csv` on the disk, `a+b.csv`
    is one part. Raises JobError with every problem: exit 2 for grammar, exit 3 for files that are
    missing or of an unknown kind.
    """
    parts: list[Part] = []
    problems: list[Problem] = []
    for text in _split(spec):
        try:
            parts.append(_parse_part(text, weights))
        except JobError as error:
            problems.extend(error.problems)
    if problem := _prepared_problem(parts, weights):
        problems.append(problem)
    if problems:
        raise JobError(*problems)
    return tuple(parts)


def _prepared_problem(parts: Sequence[Part], weights: bool) -> Problem | None:
    """Return the problem of a prepared folder with other parts, with limits or prepared again."""
    one = next((part for part in parts if part.path and is_prepared(part.path)), None)
    if one is None:
        return None
    if weights:
        got, fix = f"{one.name}, which prepare wrote", "Name the texts that it was prepared from."
        return Problem(FIELD, "texts to prepare", got, fix)
    if len(parts) == 1 and one == Part(one.name, one.path):
        return None
    got = f"{one.name} with {'other parts' if len(parts) > 1 else 'limits'}"
    fix = "Mix and limit the texts when you prepare them."
    return Problem(FIELD, "a folder of prepare by itself, without limits", got, fix)


def absolute_mixture(spec: str) -> str:
    """Write the mixture with absolute paths, so that it means the same from any folder."""
    return renamed_mixture(
        spec, lambda name: os.path.abspath(os.path.expanduser(name)) if _exists(name) else name
    )


def renamed_mixture(spec: str, rename: Callable[[str], str]) -> str:
    """Write the mixture with every name passed through `rename`; limits are kept."""
    parts = [(text, None) if _exists(text) else _bracketed(text) for text in _split(spec)]
    return "|".join(
        rename(name) if options is None else f"{rename(name)}[{options}]" for name, options in parts
    )


def _split(spec: str) -> Iterator[str]:
    """Yield the parts of a mixture as they were written. Raises JobError (exit 2)."""
    fix = "Put the files into a folder."
    # Names may hold separators, and every pair of separators is tried as the ends of a path.
    if spec.count("|") + spec.count("+") > MAX_SEPARATORS:
        raise JobError(Problem(FIELD, f"at most {MAX_SEPARATORS} signs | and +", "more", fix))
    # Names stand at even places, separators between them.
    tokens = re.split(r"([|+])(?![^\[\]]*\])", spec.strip())
    if len(tokens) > 2 * MAX_PARTS:
        got = f"{len(tokens) // 2 + 1}"
        raise JobError(Problem(FIELD, f"at most {MAX_PARTS} parts", got, fix))
    start = 0
    while start < len(tokens):
        ends = (
            end for end in range(len(tokens), start, -2) if _is_path("".join(tokens[start:end]))
        )
        end = next(ends, start + 1)
        yield "".join(tokens[start:end]).strip()
        start = end + 1


def _bracketed(text: str) -> tuple[str, str | None]:
    """Split `NAME[OPTIONS]` into its two halves."""
    found = re.fullmatch(r"(.*)\[([^\[\]]*)\]", text, re.DOTALL)
    return (found[1].strip(), found[2]) if found else (text, None)


def _exists(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))


def _is_path(text: str) -> bool:
    return _exists(text.strip()) or _exists(_bracketed(text.strip())[0])


def _parse_part(text: str, weights: bool) -> Part:
    name, options = (text, None) if _exists(text) else _bracketed(text)
    if not name:
        expected, fix = "a file, a folder or a hub id", "Write NAME or NAME|NAME."
        raise JobError(Problem(FIELD, expected, repr(text), fix))
    path = Path(name).expanduser() if _exists(name) else None
    found, problems = (
        _parse_options(name, options, path, weights) if options is not None else ({}, [])
    )
    if problem := path_problem(path) if path else _hub_problem(name):
        problems.append(problem)
    if problems:
        raise JobError(*problems)
    limits = {key: int(value) for key, value in found.items() if key in ("train", "eval")}
    weight = float(found.get("weight", 1))
    return Part(name, path, found.get("name"), limits.get("train"), limits.get("eval"), weight)


def _parse_options(
    name: str, options: str, path: Path | None, weights: bool
) -> tuple[dict[str, str], list[Problem]]:
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for option in options.split(","):
        word, _, value = (text.strip() for text in option.partition(":"))
        key = _LIMITS.get(word, word)
        got = repr(option)
        if word in _LIMITS and not re.fullmatch(r"[1-9](_?[0-9]){0,17}", value):
            expected, got = f"a whole number from 1 after '{word}:' in {name}", repr(value)
        elif key == "weight" and not weights:
            expected = f"no weight for {name}: `main.py prepare` weighs the parts of a mixture"
        elif key == "weight" and not _is_weight(value):
            expected, got = f"a number from 0.001 to 1000 after 'weight:' in {name}", repr(value)
        elif key not in ("train", "eval", "name", "weight") or not value:
            expected = f"train:N, test:N or name:CONFIG in the brackets of {name}"
        elif key in found:
            expected, got = f"a single {key} in the brackets of {name}", f"another one, {option!r}"
        elif key == "name" and path:
            expected = f"no 'name:' for {name}, which is on this machine"
        else:
            found[key] = value
            continue
        problems.append(Problem(FIELD, expected, got))
    return found, problems


def _is_weight(text: str) -> bool:
    return (
        bool(re.fullmatch(r"\d{1,4}(\.\d{1,6})?|\.\d{1,6}", text)) and 0.001 <= float(text) <= 1000
    )


def _hub_problem(name: str) -> Problem | None:
    """Return the problem of a name that is no path here and no hub id either."""
    suffix = data_suffix(Path(name))
    if name[0] in "./~" or suffix in READERS or suffix in COMPRESSED or suffix == ".py":
        expected, got = "an existing file or folder", f"the missing file {name}"
        return Problem(FIELD, expected, got, "Check the path.", Code.DATA)
    if "[" in name or "]" in name:
        expected = "NAME or NAME[train:N,test:N,name:CONFIG]"
        return Problem(FIELD, expected, repr(name), "Check the brackets.")
    if not _HUB_ID.fullmatch(name):
        expected, got = "an existing file or folder, or a hub id", f"{name!r}, which is neither"
        return Problem(FIELD, expected, got, "Check the path.", Code.DATA)
    return None
