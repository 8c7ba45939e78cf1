"""Redaction of keys: `[redacted]` stands for what looks like one, or is one of the environment.

Every text that leaves a program passes `redact`: JSON and events in run/folder.to_json, printed
lines through `guard_streams`, TensorBoard in worker/reporter. Native libraries write directly into
log.txt; the parent redacts what it relays of it and `scrub`s the file when the workers have ended.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from .files import is_plain, open_plain

MARK = "[redacted]"
NAMES = re.compile(
    r"KEY|TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|(?<![A-Z])(PASS|PAT|AUTH)(?![A-Z])",
    re.IGNORECASE,
)
NOT_KEYS = {"TOKENIZERS_PARALLELISM"}
SHORTEST = 8  # characters; anything shorter would redact ordinary words
# Keys that are recognised by their form, wherever they come from.
KNOWN = (
    r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}",
    r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}",
    r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])",
    r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",  # user:password of an address
)


def secrets(environ: Mapping[str, str]) -> set[str]:
    """Return the values of variables named like a key.

    Existing paths, numbers and plain words (`disabled`) are not keys.
    """
    found: set[str] = set()
    for name, value in environ.items():
        if not NAMES.search(name) or name in NOT_KEYS:
            continue
        for line in map(str.strip, value.splitlines()):  # a key may be printed line by line
            word = re.fullmatch(r"[a-z]+|[\d.]+", line) and not re.search(
                "SECRET|PASSWORD", name, re.IGNORECASE
            )
            if len(line) >= SHORTEST and not word and not os.path.exists(os.path.expanduser(line)):
                found.add(line)
    return found


def compile_pattern(environ: Mapping[str, str]) -> re.Pattern[str]:
    """Compile what `redact` replaces: known kinds, and the keys of `environ` in every spelling.

    JSON and URLs spell a key in their own way.
    """
    values: set[str] = set()
    for secret in secrets(environ):
        values |= {
            secret,
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            quote(secret, safe=""),
        }
    longest_first = sorted(values, key=lambda value: (-len(value), value))
    return re.compile("|".join([*map(re.escape, longest_first), *KNOWN]))


@cache
def _pattern() -> re.Pattern[str]:
    return compile_pattern(os.environ)


def redact(text: str) -> str:
    """Return `text` without the keys of the environment, as it was at the first call."""
    return _pattern().sub(MARK, text)


_NO_ESCAPES = ("strict", "surrogateescape")  # the latter, of the C locale, fails no less


class GuardedStream:
    """A text stream that passes complete lines on to another one, redacted.

    It has only what print, logging and progress bars use.
    """

    def __init__(self, stream: TextIO):
        self._stream, self._held = stream, ""
        self.encoding, self.errors = stream.encoding, stream.errors

    def write(self, text: str) -> int:
        *lines, self._held = (self._held + text).split("\n")
        if lines:
            self._stream.write(redact("\n".join(lines) + "\n"))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        held, self._held = self._held, ""
        self._stream.write(redact(held))
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._stream.closed


def guard_streams() -> None:
    """Redact this process's stdout and stderr; characters outside their encoding are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):  # None: closed by a shell
            if isinstance(stream, io.TextIOWrapper) and stream.errors in _NO_ESCAPES:
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, GuardedStream(stream))


def scrub(path: Path) -> None:
    """Redact a text file in place, if it holds a key. Its writers must have ended."""
    if not is_plain(path):  # something took its place during the run
        return
    with open(
        path, encoding="utf-8", errors="surrogateescape", newline="", opener=open_plain
    ) as file:
        text = file.read()
    if (clean := redact(text)) != text:
        with open(
            path, "w", encoding="utf-8", errors="surrogateescape", newline="", opener=open_plain
        ) as file:
            file.write(clean)
