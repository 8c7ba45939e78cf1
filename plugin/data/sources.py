"""Where rows come from: files, folders, hub ids, and mixtures of them.

Rows stream, so a file larger than memory is read in constant memory (.json excepted: it is read
whole). Nothing is skipped in silence: what a folder holds besides data is listed by
`skipped_files`, and a file that cannot be read to its end stops the job with the file and the line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..base.errors import Code, JobError, Problem, data_error, one_line
from ..base.redact import redact
from .hub import Split, hub_rows, hub_split
from .readers import FIELD, READERS, read_file, without_nan
from .saved import saved_files

_LIMITS: dict[str, Split] = {
    "train": "train",
    "eval": "eval",
    "valid": "eval",
    "validation": "eval",
    "test": "eval",
}
_EVAL_WORD = "(?:eval|valid|validation|val|test|dev)"
_EVAL_STEM = re.compile(rf"{_EVAL_WORD}(?![a-z0-9])|.*(?<![a-z0-9]){_EVAL_WORD}$", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-\d+$")
MOST_SIGNS = 1024
MOST_PARTS = 128  # of a mixture: which stretch of it is a path is asked of the disk
_KNOWN = ", ".join(READERS)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"}
# What Transformer Lab and `datasets` put beside the data; read as rows they would spoil the
# columns.
_CACHE = re.compile(r"cache-.*\.arrow")  # what map, filter and shuffle of `datasets` leave behind
_METADATA = {
    "index.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}


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

    def limit(self, split: Split) -> int | None:
        return self.train_limit if split == "train" else self.eval_limit


@dataclass(frozen=True)
class Row:
    """One row and where it stands:

    `a.jsonl:7` is line 7, `a.json:3` the third object, `org/name:3` the third row.
    """

    id: str
    values: dict[str, Any]


def parse_mixture(spec: str) -> tuple[Part, ...]:
    """Parse `NAME[train:5_000,test:100,name:cfg] | NAME + NAME`; both separators concatenate, in
    the order given.

    A stretch of the text that exists as a path is that path, even if it holds `+`, `|` or brackets.
    Raises JobError with every problem: exit 2 for grammar, exit 3 for files that are missing or of
    no known kind.
    """
    parts: list[Part] = []
    problems: list[Problem] = []
    for text in _split(spec):
        try:
            parts.append(_parse_part(text))
        except JobError as error:
            problems.extend(error.problems)
    if problems:
        raise JobError(*problems)
    return tuple(parts)


def absolute_mixture(spec: str) -> str:
    """The same mixture with every path in full, so that it means the same from any folder."""
    return renamed_mixture(
        spec, lambda name: os.path.abspath(os.path.expanduser(name)) if _exists(name) else name
    )


def renamed_mixture(spec: str, rename: Callable[[str], str]) -> str:
    """The same mixture, its limits kept, of the data sets that `rename` makes of its names."""
    parts = [(text, None) if _exists(text) else _bracketed(text) for text in _split(spec)]
    return "|".join(
        rename(name) if options is None else f"{rename(name)}[{options}]" for name, options in parts
    )


def _split(spec: str) -> Iterator[str]:
    """The parts of a mixture as they were written."""
    if (
        spec.count("|") + spec.count("+") > MOST_SIGNS
    ):  # names may hold some; each is looked at from every other
        raise JobError(
            Problem(
                FIELD, f"at most {MOST_SIGNS} signs | and +", "more", "Put the files into a folder."
            )
        )
    tokens = re.split(
        r"([|+])(?![^\[\]]*\])", spec.strip()
    )  # names at even places, separators between them
    if len(tokens) > 2 * MOST_PARTS:
        raise JobError(
            Problem(
                FIELD,
                f"at most {MOST_PARTS} parts",
                f"{len(tokens) // 2 + 1}",
                "Put the files into a folder.",
            )
        )
    start = 0
    while start < len(tokens):
        ends = (
            end for end in range(len(tokens), start, -2) if _is_path("".join(tokens[start:end]))
        )
        end = next(ends, start + 1)
        yield "".join(tokens[start:end]).strip()
        start = end + 1


def _bracketed(text: str) -> tuple[str, str | None]:
    """`NAME[OPTIONS]` as its two halves."""
    found = re.fullmatch(r"(.*)\[([^\[\]]*)\]", text, re.DOTALL)
    return (found[1].strip(), found[2]) if found else (text, None)


def _exists(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))


def _is_path(text: str) -> bool:
    return _exists(text.strip()) or _exists(_bracketed(text.strip())[0])


def _parse_part(text: str) -> Part:
    name, options = (text, None) if _exists(text) else _bracketed(text)
    if not name:
        raise JobError(
            Problem(FIELD, "a file, a folder or a hub id", repr(text), "Write NAME or NAME|NAME.")
        )
    path = Path(name).expanduser() if _exists(name) else None
    found, problems = _parse_options(name, options, path) if options is not None else ({}, [])
    if problem := _path_problem(path) if path else _hub_problem(name):
        problems.append(problem)
    if problems:
        raise JobError(*problems)
    limits = {key: int(value) for key, value in found.items() if key != "name"}
    return Part(name, path, found.get("name"), limits.get("train"), limits.get("eval"))


def _parse_options(
    name: str, options: str, path: Path | None
) -> tuple[dict[str, str], list[Problem]]:
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for option in options.split(","):
        word, _, value = (piece.strip() for piece in option.partition(":"))
        key = _LIMITS.get(word, word)
        if word in _LIMITS and not re.fullmatch(r"[1-9](_?[0-9]){0,17}", value):
            problems.append(
                Problem(FIELD, f"a whole number from 1 after '{word}:' in {name}", repr(value))
            )
        elif key not in ("train", "eval", "name") or not value:
            problems.append(
                Problem(
                    FIELD, f"train:N, test:N or name:CONFIG in the brackets of {name}", repr(option)
                )
            )
        elif key in found:
            problems.append(
                Problem(
                    FIELD, f"one limit for the {key} split of {name}", f"another one, {option!r}"
                )
            )
        elif key == "name" and path:
            problems.append(
                Problem(FIELD, f"no 'name:' for {name}, which is on this machine", repr(option))
            )
        else:
            found[key] = value
    return found, problems


def _path_problem(path: Path) -> Problem | None:
    if path.is_dir():
        children = _children(path)
        if packed := [
            child.name for child in children["skipped"] if child.suffix.lower() in _COMPRESSED
        ]:
            return Problem(
                FIELD, f"uncompressed files in {path}", ", ".join(packed), "Unpack them.", Code.DATA
            )
        if not children["train"]:
            fix = "Sub-folders are not read; name the one that holds the files."
            return Problem(
                FIELD, f"a folder with {_KNOWN} files", f"{path} with none", fix, Code.DATA
            )
        return None
    suffix = path.suffix.lower()
    if path.is_file() and suffix in READERS:
        return None
    if suffix in _COMPRESSED:
        return Problem(FIELD, f"an uncompressed {_KNOWN} file", str(path), "Unpack it.", Code.DATA)
    fix = "Dataset scripts are never run; save the rows to a file." if suffix == ".py" else ""
    return Problem(FIELD, f"a {_KNOWN} file or a folder", str(path), fix, Code.DATA)


def _hub_problem(name: str) -> Problem | None:
    suffix = Path(name).suffix.lower()
    if name[0] in "./~" or suffix in READERS or suffix in _COMPRESSED or suffix == ".py":
        return Problem(
            FIELD,
            "an existing file or folder",
            f"the missing file {name}",
            "Check the path.",
            Code.DATA,
        )
    if "[" in name or "]" in name:
        return Problem(
            FIELD, "NAME or NAME[train:N,test:N,name:CONFIG]", repr(name), "Check the brackets."
        )
    if not _HUB_ID.fullmatch(name):
        got = f"{name!r}, which is neither"
        return Problem(
            FIELD, "an existing file or folder, or a hub id", got, "Check the path.", Code.DATA
        )
    return None


def _is_eval(path: Path) -> bool:
    """Whether a file name begins or ends with eval, valid, validation, val, test or dev as a word
    of its own.
    """
    return bool(_EVAL_STEM.match(_SHARD.sub("", path.stem)))


def _children(folder: Path) -> dict[str, list[Path]]:
    """A folder's direct files by use: train, eval, skipped; of a folder that `datasets` saved,
    those that it names.

    When every file has an eval name, the user chose that folder to train on: they are train, and
    eval is empty.
    """
    if (saved := saved_files(folder)) is not None:
        return {**saved}
    try:
        files = sorted(child for child in folder.iterdir() if child.is_file())
    except OSError as error:
        raise data_error(
            FIELD, "a folder that can be read", f"{folder}: {error.strerror or error}"
        ) from error
    data = [file for file in files if _is_data(file)]
    held_out = [file for file in data if _is_eval(file)]
    if len(held_out) == len(data):
        held_out = []
    train = [file for file in data if file not in held_out]
    return {
        "train": train,
        "eval": held_out,
        "skipped": [file for file in files if file not in data],
    }


def _is_data(file: Path) -> bool:
    known = file.suffix.lower() in READERS and file.name not in _METADATA
    return known and not file.name.startswith(".") and not _CACHE.fullmatch(file.name)


def _files(parts: Sequence[Part], split: Split) -> list[list[Path]]:
    """The local files of one split, part by part.

    Files are told apart by their names, in a folder and in a mixture alike. Where that would leave
    nothing to train on, a name says nothing: all of them are train.
    """
    named = [one.path for one in parts if one.path and not one.path.is_dir()]
    told_apart = any(not _is_eval(path) for path in named) or any(
        one.path is None or one.path.is_dir() for one in parts
    )

    def of(part: Part) -> list[Path]:
        if part.path is None:
            return []
        if part.path.is_dir():
            return _children(part.path)[split]
        held_out = told_apart and _is_eval(part.path)
        return [part.path] if held_out == (split == "eval") else []

    return [of(part) for part in parts]


def skipped_files(spec: str) -> tuple[str, ...]:
    """What lies in the folders of a mixture and is not read: hidden files, metadata, unknown
    suffixes.
    """
    folders = [part.path for part in parse_mixture(spec) if part.path and part.path.is_dir()]
    return tuple(str(file) for folder in folders for file in _children(folder)["skipped"])


def local_paths(spec: str) -> list[Path]:
    """List the files and folders of this machine that a mixture names, and the files that are read
    in its folders.
    """
    try:
        parts = parse_mixture(spec)
    except JobError:  # whoever reads the rows tells it
        return []
    files = [
        path for split in ("train", "eval") for paths in _files(parts, split) for path in paths
    ]
    return [*(part.path for part in parts if part.path), *files]


def has_eval_split(spec: str) -> bool:
    """Whether any part has an eval split of its own.

    Asks the hub about hub ids. Raises JobError as `read_rows`.
    """
    parts = parse_mixture(spec)
    return any(_files(parts, "eval")) or any(
        hub_split(part.name, part.config, "eval") for part in parts if part.path is None
    )


def read_rows(spec: str, split: Split, *, text_rows: str = "paragraph") -> Iterator[Row]:
    """The rows of one split, part after part, each part up to its limit; `text_rows`: what one row
    of a .txt is.

    Raises JobError: for a bad spec at once, for bad data (exit 3) when the iteration meets it.
    """
    parts = parse_mixture(spec)
    files = _files(parts, split)
    names = Counter(path.name for paths in files for path in paths)
    pairs = zip(parts, files, strict=True)
    streams = (_part_rows(part, paths, split, names, text_rows) for part, paths in pairs)
    return chain.from_iterable(
        islice(stream, part.limit(split)) for part, stream in zip(parts, streams, strict=True)
    )


def _part_rows(
    part: Part,
    paths: Sequence[Path],
    split: Split,
    names: Counter[str],
    text_rows: str,
) -> Iterator[Row]:
    if part.path is None:
        for number, values in enumerate(hub_rows(part.name, part.config, split), start=1):
            yield Row(f"{part.name}:{number}", without_nan(values))
    for path in paths:
        # Two files of one name would share their row ids.
        label = redact(one_line(path.name if names[path.name] == 1 else str(path)))
        try:
            if path.stat().st_size:
                for number, values in read_file(path, text_rows):
                    yield Row(f"{label}:{number}", values)
        except OSError as error:
            raise data_error(
                FIELD, "a file that can be read", f"{path}: {error.strerror or error}"
            ) from error


def fingerprint(spec: str) -> str:
    """32 hex digits over what the mixture holds: limits, splits, names and content of files; names
    alone of hub ids.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = parse_mixture(spec)
    for part, train, held_out in zip(
        parts, _files(parts, "train"), _files(parts, "eval"), strict=True
    ):
        name = None if part.path else part.name
        facts: list[object] = [name, part.config, part.train_limit, part.eval_limit]
        for split, path in [("train", path) for path in train] + [
            ("eval", path) for path in held_out
        ]:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
            except OSError as error:
                raise data_error(
                    FIELD, "a file that can be read", f"{path}: {error.strerror or error}"
                ) from error
            facts.append([split, path.name, content])
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
