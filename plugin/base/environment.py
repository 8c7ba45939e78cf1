"""Check of this Python for the packages that the programs import.

It needs only Python 3.8 and the standard library.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 11)
# Packages that every job imports.
NEEDED = (
    *(
        "accelerate",
        "datasets",
        "jinja2",
        "numpy",
        "peft",
        "psutil",
        "pydantic",
        "pynvml",
        "rich",
        "safetensors",
        "tensorboard",
    ),
    *("tokenizers", "torch", "transformers", "yaml"),
)
# Older releases lack torch's varlen attention, and transformers' switch for activation checkpointing
# and attention that is not causal.
LEAST = {"torch": (2, 10), "transformers": (5, 23)}


def problem(root: Path) -> str:
    """Return one line that says how to enter the environment; empty if nothing is missing.

    `root`: the folder of this program.
    """
    if sys.version_info < OLDEST:
        got = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    elif missing := [name for name in NEEDED if find_spec(name) is None]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        got = f"{sys.executable or 'a Python'} without {', '.join(missing[:3])}{more}"
    elif old := [
        f"{name} {found}"
        for name, least in LEAST.items()
        if too_old(found := installed(name), least)
    ]:
        wanted = ", ".join(
            f"{name} {'.'.join(map(str, LEAST[name]))} or newer"
            for name in (word.split()[0] for word in old)
        )
        fix = "Run `bash setup.sh` in that environment."
        return f"error[2]: environment: expected {wanted}, got {', '.join(old)} in {sys.executable}. {fix}"
    else:
        return ""
    expected = "Python 3.11 or 3.12 with the packages of requirements.txt"
    python = root / ".venv" / "bin" / "python"
    make = "" if python.exists() else f"Run `make setup` in {root} first. "
    fix = f"{make}Then `source {root / '.venv' / 'bin' / 'activate'}`, or start {python} {root / 'main.py'}."
    return f"error[2]: environment: expected {expected}, got {got}. {fix if make else fix.replace('Then `', 'Run `')}"


def installed(name: str) -> str:
    """Return a package's version; empty where its metadata is missing, as in a source tree."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def too_old(found: str, least: tuple[int, int]) -> bool:
    """Compare a version's first two numbers; an unreadable version counts as new enough."""
    numbers = [int(part) for part in re.findall(r"\d+", found)[:2]]
    return len(numbers) == 2 and tuple(numbers) < least


def require(root: Path) -> None:
    """End this program with the one line of `problem`, if there is one."""
    if line := problem(root):
        print(line, file=sys.stderr)
        sys.exit(2)
