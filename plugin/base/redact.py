"""Keys never reach a file or a stream: what looks like one, or is the value of one in the
environment, becomes `[redacted]`.

Every text that leaves a program passes `redact`: JSON and events in run_folder.to_json, printed
lines through `guard_streams`, the board in reporting. Native libraries write past that, straight
into log.txt; the parent redacts what it relays of it, and `scrub`s the file when the workers have
ended.
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
# Keys that are known by their look, from wherever they come.
KNOWN = (
    r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}",
    r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}",
    r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])",
    r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",  # user:password of an address
)


def secrets(environ: Mapping[str, str]) -> set[str]:
    """Values of variables named like a key.

    Paths that exist, numbers and plain words (`disabled`) are none.
    """
    found: set[str] = set()
    for name, value in environ.items():
        if not NAMES.search(name) or name in NOT_KEYS:
            continue
        for line in (
            part.strip() for part in value.splitlines()
        ):  # a key of several lines is also told line by line
            word = re.fullmatch(r"[a-z]+|[\d.]+", line) and not re.search(
                "SECRET|PASSWORD", name, re.IGNORECASE
            )
            if len(line) >= SHORTEST and not word and not os.path.exists(os.path.expanduser(line)):
                found.add(line)
    return found


def compile_pattern(environ: Mapping[str, str]) -> re.Pattern[str]:
    """What `redact` replaces, given this environment: its keys as they are, as JSON and as URLs
    write them, and known kinds.
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
    """`text` without any key of this process's environment, as it was when first asked."""
    return _pattern().sub(MARK, text)


class GuardedStream:
    """A text stream in front of another one that lets whole lines through, redacted.

    Only what print, logging and bars use.
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
    """Put the filter in front of this process's stdout and stderr; what their encoding lacks is
    written as an escape.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, GuardedStream):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, GuardedStream(stream))


def scrub(path: Path) -> None:
    """Redact a finished text file in place, if anything in it has to be.

    Its writers must have ended.
    """
    if not is_plain(path):  # something has taken its place while the run went on
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
