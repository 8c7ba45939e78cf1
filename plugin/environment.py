"""Whether the Python that runs this has what the programs import. Nothing here needs more than Python 3.8 and its own library."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 11)
# What is imported whatever the job is.
NEEDED = (
    *("accelerate", "datasets", "jinja2", "numpy", "peft", "psutil", "pydantic", "rich", "safetensors", "tensorboard"),
    *("tokenizers", "torch", "transformers", "yaml"),
)


def problem(root: Path) -> str:
    """Return the one line that says how to get in; empty where everything is there. `root`: of this program."""
    if sys.version_info < OLDEST:
        got = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    elif missing := [name for name in NEEDED if find_spec(name) is None]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        got = f"{sys.executable or 'a Python'} without {', '.join(missing[:3])}{more}"
    else:
        return ""
    expected = "Python 3.11 or 3.12 with the packages of requirements.txt"
    python = root / ".venv" / "bin" / "python"
    make = "" if python.exists() else f"Run `make setup` in {root} first. "
    fix = f"{make}Then `source {root / '.venv' / 'bin' / 'activate'}`, or start {python} {root / 'main.py'}."
    return f"error[2]: environment: expected {expected}, got {got}. {fix if make else fix.replace('Then `', 'Run `')}"
