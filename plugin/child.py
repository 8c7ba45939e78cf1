"""How one program of this product starts another: from where, and with which import path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def child_path(environ: Mapping[str, str]) -> dict[str, str]:
    """The PYTHONPATH that `python -P -m plugin.X` needs: our folder first, the user's behind it."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")]))}
